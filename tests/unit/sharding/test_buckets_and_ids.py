"""Buckets and ids: what never changes."""

from __future__ import annotations

import enum
from collections import Counter
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from sharding import (
    BUCKET_COUNT,
    Bucket,
    IdMaker,
    NotAKey,
    bucket,
    bucket_for,
    bucket_of,
    bucket_of_id,
    new_id,
    time_of_id,
)

IDS = 1_000_000


def zeros(count: int) -> bytes:
    return bytes(count)


def test_the_bucket_of_a_key_is_what_it_was_when_the_first_row_was_written() -> None:
    """The first two bytes of each SHA-256, modulo 1024; a change of the hash fails here."""
    keys = ["username:anna", UUID("00000000-0000-4000-8000-000000000001"), 42, b"\x00\xff"]
    assert [bucket_of(key) for key in keys] == [628, 485, 839, 747]


def test_a_key_and_its_text_have_one_bucket() -> None:
    """The canonical form of a UUID or int is its text."""
    key = uuid4()
    assert bucket_of(key) == bucket_of(str(key))
    assert bucket_of(-7) == bucket_of("-7")


def test_a_member_of_an_enumeration_is_the_value_that_postgresql_gets() -> None:
    """Python may print it otherwise; what is written is the value."""

    class Login(str, enum.Enum):  # noqa: UP042 - a StrEnum prints its value, this does not
        ANNA = "anna"

    class Number(int, enum.Enum):
        SEVEN = 7

    assert bucket_of(Login.ANNA) == bucket_of("anna")
    assert bucket_of(Number.SEVEN) == bucket_of(7)


@pytest.mark.parametrize("wrong", [None, 1.5, True, ["a"], "\ud800"])
def test_what_has_no_canonical_form_is_refused(wrong: object) -> None:
    """Only UUID, str, int and bytes are keys, and text only where it is Unicode."""
    with pytest.raises(NotAKey):
        bucket_of(wrong)  # type: ignore[arg-type]  # the refusal of a wrong type is what is tested


@pytest.mark.parametrize("wrong", [-1, BUCKET_COUNT, True])
def test_a_number_outside_the_range_is_no_bucket(wrong: int) -> None:
    """Buckets are 0 to 1023."""
    with pytest.raises(NotAKey):
        bucket(wrong)


def test_an_id_is_a_uuid_version_7_and_gives_back_its_bucket_and_time() -> None:
    """Bucket and millisecond survive the round trip, at both ends of the ranges."""
    for number in (0, 1, 511, 1023):
        for unix_ms in (0, 1_795_000_000_123, (1 << 47)):
            made = new_id(Bucket(number), unix_ms=unix_ms, dice=zeros)
            assert made.version == 7
            assert made.variant == "specified in RFC 4122"
            assert bucket_of_id(made) == number
            assert made.int >> 80 == unix_ms
    made = new_id(Bucket(5), unix_ms=1_793_491_200_123)
    assert time_of_id(made) == datetime(2026, 11, 1, 0, 0, 0, 123000, tzinfo=UTC)


def test_an_id_without_a_bucket_has_random_dice_for_it() -> None:
    """The dice alone choose the bucket."""
    assert bucket_of_id(new_id(unix_ms=1, dice=lambda count: b"\xff" * count)) == 1023


def test_other_uuids_carry_no_bucket() -> None:
    """A version 4, and a version 7 with another layout, are refused rather than misread."""
    foreign = UUID(int=new_id(Bucket(3), unix_ms=1).int | 1 << 64)
    for wrong in (uuid4(), foreign):
        with pytest.raises(NotAKey):
            bucket_of_id(wrong)
        assert bucket_for(wrong) == bucket_of(wrong)


def test_bucket_for_reads_ids_and_buckets_and_hashes_keys() -> None:
    """An id means its own bucket, an int is a bucket, text is a key."""
    made = IdMaker()(Bucket(77))
    assert bucket_for(made) == 77
    assert bucket_for(Bucket(9)) == 9
    assert bucket_for("anna") == bucket_of("anna")
    with pytest.raises(NotAKey):
        bucket_for(5000)


def test_a_million_ids_are_all_different_in_the_order_of_time_and_even_over_buckets() -> None:
    """No double; times never step back; no bucket is 20 % off the mean (over six standard deviations)."""
    maker = IdMaker()
    made = [maker() for _ in range(IDS)]
    assert len(set(made)) == IDS
    times = [one.int >> 80 for one in made]
    assert times == sorted(times)
    counts = Counter(bucket_of_id(one) for one in made)
    mean = IDS / BUCKET_COUNT
    assert 0.8 * mean < min(counts.values()) <= max(counts.values()) < 1.2 * mean


def test_ids_of_one_bucket_strictly_rise_while_the_clock_stands_or_steps_back() -> None:
    """The last time is kept, and the random part steps up."""
    ticks = iter([1000, 1000, 1000, 999, 400, 1001, 1001])
    maker = IdMaker(clock_ms=lambda: next(ticks))
    made = [maker(Bucket(4)) for _ in range(7)]
    assert made == sorted(set(made))
    assert [one.int >> 80 for one in made] == [1000] * 5 + [1001] * 2


def test_a_time_that_python_cannot_hold_is_no_time() -> None:
    """An id may carry the year 10889: it is refused like any other stranger's."""
    with pytest.raises(NotAKey, match="carries no time"):
        time_of_id(UUID("ffffffff-ffff-7000-8000-000000000000"))


def test_a_full_millisecond_borrows_the_next() -> None:
    """When the random part would overflow, the time steps up instead."""
    maker = IdMaker(clock_ms=lambda: 1000, dice=lambda count: b"\xff" * count)
    maker._last_ms, maker._last_random = 1000, (1 << 62) - 1
    assert maker(Bucket(0)).int >> 80 == 1001
