"""The rules of listings: what a stay costs, when it may be booked, and who may be found."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.boarding.domain import (
    MODERATION,
    AuditStatus,
    IllegalModeration,
    Line,
    OutsideWindow,
    PriceRules,
    ScheduleRules,
    check_schedule,
    distance_km,
    moderate,
    nights_of,
    percent_of,
    pools_of,
    price,
    total_cents,
    windows,
)

SHANGHAI = ZoneInfo("Asia/Shanghai")
MONDAY, FRIDAY, SATURDAY = date(2026, 11, 2), date(2026, 11, 6), date(2026, 11, 7)
NOON = datetime(2026, 11, 1, 12, tzinfo=SHANGHAI)
DAY = timedelta(days=1)


def days(n: int) -> timedelta:
    return timedelta(days=n)


def refusal(rules: ScheduleRules, check_in: date, nights: int, now: datetime = NOON, *blocked: date) -> str | None:
    """Why the stay is refused, or None."""
    try:
        check_schedule(rules, check_in, check_in + days(nights), now, frozenset(blocked))
    except OutsideWindow as refused:
        return str(refused)
    return None


def test_a_stay_costs_its_nights_and_not_the_day_of_leaving() -> None:
    """Monday to Wednesday is two nights."""
    assert price(PriceRules(10_000), MONDAY, MONDAY + days(2), 1) == [Line("nights", 2, 20_000)]


def test_only_nights_that_begin_on_friday_or_saturday_cost_more() -> None:
    """Thursday to Monday has two such nights; from Sunday to Friday there is none, and then no line."""
    rules = PriceRules(10_000, weekend_percent=25)
    assert price(rules, FRIDAY - DAY, FRIDAY + days(3), 1)[1:] == [Line("weekend +25%", 2, 5_000)]
    assert price(rules, SATURDAY + DAY, FRIDAY + days(7), 1)[1:] == []


def test_further_pets_cost_their_percentage_of_the_first_with_its_weekends() -> None:
    """Two more pets at half price: as much again as the first."""
    lines = price(PriceRules(10_000, weekend_percent=50, extra_pet_percent=50), FRIDAY, FRIDAY + days(2), 3)
    assert [line.amount_cents for line in lines] == [20_000, 10_000, 30_000]
    assert lines[2].label == "2 more pet(s) at 50%"


def test_a_long_stay_gets_the_discount_of_the_longest_tier_that_it_reaches() -> None:
    """On everything before it, from the tier's own night on."""
    rules = PriceRules(10_000, long_stay=((7, 10), (14, 20)))

    def off(nights: int) -> int:
        lines = price(rules, MONDAY, MONDAY + days(nights), 2)
        return sum(line.amount_cents for line in lines if line.amount_cents < 0)

    assert [off(n) for n in (6, 7, 13, 14)] == [0, -14_000, -26_000, -56_000]


def test_percents_round_half_a_cent_up() -> None:
    """0.5 cents are one, 0.49 are none, and whole cents are exact."""
    assert [percent_of(cents, percent) for cents, percent in ((1, 50), (1, 49), (5, 10), (333, 33), (200, 50))] == [
        1,
        0,
        1,
        110,
        100,
    ]


rules_of_prices = st.builds(
    PriceRules,
    night_cents=st.integers(1, 100_000_000),
    weekend_percent=st.integers(0, 500),
    extra_pet_percent=st.integers(0, 500),
    long_stay=st.lists(st.tuples(st.integers(2, 365), st.integers(1, 90)), max_size=4).map(lambda t: tuple(sorted(t))),
)


@given(rules_of_prices, st.integers(0, 400), st.integers(1, 90), st.integers(1, 10))
def test_no_rules_make_a_stay_free_or_worse(rules: PriceRules, start: int, nights: int, pets: int) -> None:
    """The lines sum to a total above zero, only a long stay takes off, and one more pet never makes it cheaper."""
    first = MONDAY + days(start)
    lines = price(rules, first, first + days(nights), pets)
    assert all(line.amount_cents >= 0 for line in lines if "nights -" not in line.label)
    assert 0 < total_cents(lines) == sum(line.amount_cents for line in lines)
    assert total_cents(price(rules, first, first + days(nights), pets + 1)) >= total_cents(lines)
    assert all(0 < line.nights <= nights for line in lines)


@pytest.mark.parametrize(
    ("rules", "check_in", "nights", "word"),
    [
        (ScheduleRules(), MONDAY, 0, "after the check-in"),
        (ScheduleRules(), MONDAY, -1, "after the check-in"),
        (ScheduleRules(), NOON.date() - DAY, 1, "has passed"),
        (ScheduleRules(min_nights=3), MONDAY, 2, "3 to 90 nights, not 2"),
        (ScheduleRules(max_nights=5), MONDAY, 6, "1 to 5 nights, not 6"),
        (ScheduleRules(horizon_days=30), NOON.date() + days(31), 1, "30 days ahead"),
        (ScheduleRules(lead_hours=37), MONDAY, 1, "37 hours' notice"),
    ],
)
def test_a_stay_that_breaks_a_rule_is_refused_with_that_rule(
    rules: ScheduleRules, check_in: date, nights: int, word: str
) -> None:
    """The refusal names the limit."""
    assert word in str(refusal(rules, check_in, nights))


@pytest.mark.parametrize(
    ("rules", "check_in", "nights"),
    [
        (ScheduleRules(), NOON.date(), 1),
        (ScheduleRules(min_nights=3, max_nights=3), MONDAY, 3),
        (ScheduleRules(horizon_days=30), NOON.date() + days(30), 1),
        (ScheduleRules(lead_hours=36), MONDAY, 1),
    ],
)
def test_a_stay_on_the_edge_of_a_rule_is_taken(rules: ScheduleRules, check_in: date, nights: int) -> None:
    """Limits are inclusive; a notice counts to the end of the check-in day."""
    assert refusal(rules, check_in, nights) is None


def test_a_closed_night_refuses_the_stays_that_have_it() -> None:
    """The day of leaving may be closed, a night may not; the refusal names it."""
    assert f"closed on {FRIDAY}" in str(refusal(ScheduleRules(), MONDAY, 5, NOON, FRIDAY))
    assert refusal(ScheduleRules(), MONDAY, 4, NOON, FRIDAY) is None


def test_today_is_the_listings_own_day() -> None:
    """When it is past midnight in Shanghai, yesterday is over there, whatever UTC says."""
    late_in_utc = datetime(2026, 11, 1, 17, tzinfo=ZoneInfo("UTC"))
    assert refusal(ScheduleRules(), date(2026, 11, 1), 1, late_in_utc) is None
    assert refusal(ScheduleRules(), date(2026, 11, 1), 1, late_in_utc.astimezone(SHANGHAI)) is not None


def test_moderation_knows_these_steps_and_no_others() -> None:
    """Every step from every state: it leads where the table says, or it is refused by name."""
    allowed = {
        ("submit", AuditStatus.DRAFT): AuditStatus.PENDING,
        ("submit", AuditStatus.REJECTED): AuditStatus.PENDING,
        ("approve", AuditStatus.PENDING): AuditStatus.APPROVED,
        ("reject", AuditStatus.PENDING): AuditStatus.REJECTED,
        ("take-down", AuditStatus.APPROVED): AuditStatus.TAKEN_DOWN,
        ("restore", AuditStatus.TAKEN_DOWN): AuditStatus.APPROVED,
    }
    for verb in MODERATION:
        for now in AuditStatus:
            if (verb, now) in allowed:
                assert moderate(now, verb) is allowed[verb, now]
            else:
                with pytest.raises(IllegalModeration, match=f"'{verb}' is for .* this one is {now.name.lower()}"):
                    moderate(now, verb)


def test_suggestions_begin_with_the_wish_and_go_outwards() -> None:
    """Of two stays equally far away the later comes first; all have the wished length."""
    assert [(start - MONDAY).days for start, _ in windows(3, MONDAY, flexible_days=2)] == [0, 1, -1, 2, -2]
    assert all(end - start == days(3) for start, end in windows(3, MONDAY, flexible_days=2))
    assert windows(1, MONDAY, flexible_days=0) == [(MONDAY, MONDAY + DAY)]


def test_nights_are_those_of_the_half_open_stay() -> None:
    """Reversed stays have none."""
    assert nights_of(FRIDAY, FRIDAY + days(2)) == [FRIDAY, SATURDAY]
    assert nights_of(SATURDAY, FRIDAY) == []


def test_pets_of_one_kind_need_as_many_places() -> None:
    """By species and size."""
    assert pools_of([("dog", "M"), ("cat", "S"), ("dog", "M")]) == {"dog-M": 2, "cat-S": 1}


def test_distances_are_those_of_the_globe() -> None:
    """Shanghai to Beijing, across the date line, and to the antipode."""
    shanghai, beijing = (31.2304, 121.4737), (39.9042, 116.4074)
    assert distance_km(shanghai, beijing) == pytest.approx(1067, abs=3)
    assert distance_km(shanghai, beijing) == distance_km(beijing, shanghai)
    assert distance_km(shanghai, shanghai) == 0
    assert distance_km((0, 179.5), (0, -179.5)) == pytest.approx(111.2, abs=0.1)
    assert distance_km((0, 0), (0, 180)) == pytest.approx(20_015, abs=1)
