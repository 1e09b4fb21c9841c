"""The map as a value, the fleet in figures, cursors, and the door of the package."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sharding
from sharding import (
    BUCKET_COUNT,
    BadCursor,
    Bucket,
    Cursors,
    Position,
    ShardId,
    ShardingError,
    ShardMap,
    UnknownShard,
    even_map,
    month_of,
    summarize,
    with_placements,
)

A, B, C = ShardId("a"), ShardId("b"), ShardId("c")
KEY = b"0123456789abcdef"


def test_the_door_holds_exactly_these_names() -> None:
    """A name that comes or goes is a decision."""
    assert set(sharding.__all__) == PUBLIC
    assert all(hasattr(sharding, name) for name in PUBLIC)


# fmt: off
PUBLIC = {
    "Answer", "BUCKET_COUNT", "BadCursor", "Bucket", "BucketMoved", "BucketState", "CannotMerge", "CannotPlace",
    "CatalogUnavailable", "Cursors", "FAN_OUT_ROWS_MAX", "FAN_OUT_TIMEOUT_S", "FleetStatus", "GuardRefused",
    "GuardReport", "IdMaker", "Key", "MapConflict", "MapStore", "NotAKey", "Part", "Partition", "PartitionsRefused",
    "Plan", "Position", "Router", "ShardId", "ShardMap", "ShardStatus", "ShardUnavailable", "ShardedTable",
    "ShardedTables", "ShardingError", "Shards", "TooManyRows", "UnknownShard", "bucket", "bucket_for", "bucket_of",
    "bucket_of_id", "bucket_states", "change_map", "create_catalog", "ensure_months", "even_map", "fan_out",
    "install_guard", "is_moved", "load_map", "month_of", "new_id", "page", "partitions_of", "plan",
    "set_bucket_states", "summarize", "time_of_id", "with_placements",
}
# fmt: on


def test_all_errors_have_one_root() -> None:
    """Whoever catches ShardingError catches all that this package raises by itself."""
    errors = [getattr(sharding, n) for n in PUBLIC if isinstance(getattr(sharding, n), type)]
    assert all(issubclass(e, ShardingError) for e in errors if issubclass(e, Exception))


@given(st.integers(min_value=1, max_value=60))
def test_an_even_map_differs_by_one_bucket_at_most(count: int) -> None:
    """Every bucket has one shard, and no shard has two more than another."""
    made = even_map([ShardId(f"s{number}") for number in range(count)])
    sizes = [len(made.buckets_of(shard)) for shard in made.shards]
    assert sum(sizes) == BUCKET_COUNT
    assert max(sizes) - min(sizes) <= 1


def test_a_change_makes_a_new_map_and_leaves_the_old_one() -> None:
    """The version rises by one; only what was named has moved."""
    before = even_map([A, B])
    after = with_placements(before, {Bucket(0): B, Bucket(1023): A})
    assert (before.version, after.version) == (1, 2)
    assert (after.shard_of(Bucket(0)), after.shard_of(Bucket(1023)), after.shard_of(Bucket(1))) == (B, A, A)
    assert before.shard_of(Bucket(0)) == A
    assert after.by_shard([Bucket(0), Bucket(1)]) == {A: {1}, B: {0}}


def test_a_map_that_is_not_whole_is_refused() -> None:
    """All buckets are placed, each on a named shard."""
    for wrong in ((A,) * 1023, (A,) * 1023 + (ShardId(""),)):
        with pytest.raises(ShardingError):
            ShardMap(1, wrong)
    with pytest.raises(UnknownShard):
        even_map([])


def test_a_fleet_is_summed_up_with_its_leftovers_and_silent_shards() -> None:
    """Rows count where the map places them; others are foreign; who gave no counts is silent."""
    status = summarize(even_map([A, B, C]), {A: {Bucket(0): 30, Bucket(1000): 5}, B: {Bucket(400): 10}})
    by_name = {shard.shard: shard for shard in status.shards}
    assert (status.rows, status.silent) == (40, (C,))
    assert (by_name[A].rows, by_name[A].foreign_rows, by_name[A].share) == (30, 5, 0.75)
    assert (by_name[C].rows, by_name[C].foreign_rows) == (None, None)
    assert status.skew == 2.25


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)), st.uuids())
def test_a_cursor_gives_back_its_row_exactly(when: datetime, id: UUID) -> None:
    """To the microsecond, whatever the zone it was given in."""
    cursors = Cursors(KEY)
    position = Position(when.replace(tzinfo=timezone(timedelta(hours=5))), id)
    assert cursors.decode(cursors.encode(position, "orders"), "orders") == position


def test_a_cursor_of_another_key_scope_or_shape_is_refused() -> None:
    """Nobody writes cursors but us, and none serves for another list."""
    cursors = Cursors(KEY)
    good = cursors.encode(Position(datetime(2026, 11, 1, tzinfo=UTC), uuid4()), "orders")
    flipped = ("A" if good[0] != "A" else "B") + good[1:]
    tries = [
        (flipped, "orders"),
        (good, "bills"),
        (good[:-2], "orders"),
        ("", "orders"),
        ("é", "orders"),
        ("A" * 999, ""),
    ]
    for cursor, scope in tries:
        with pytest.raises(BadCursor):
            cursors.decode(cursor, scope)
    with pytest.raises(BadCursor):
        Cursors(b"another key of 16").decode(good, "orders")
    with pytest.raises(BadCursor):
        Cursors(b"short")


def test_months_turn_with_the_year_in_utc() -> None:
    """A month ahead of December is January; the zone given does not matter."""
    assert month_of(datetime(2026, 12, 31, 23, tzinfo=UTC), 1) == datetime(2027, 1, 1, tzinfo=UTC)
    east = datetime(2027, 1, 1, 3, tzinfo=timezone(timedelta(hours=8)))
    assert month_of(east) == datetime(2026, 12, 1, tzinfo=UTC)
    assert month_of(east, -12) == datetime(2025, 12, 1, tzinfo=UTC)
