"""Everything that can go wrong, in one tree.

ShardingError
├── NotAKey               a value of a type that has no bucket
├── UnknownShard          the map names a shard for which there is no engine, or the caller one that is not in the map
├── CannotPlace           the statement does not say where its rows live
├── CannotMerge           the answers of several shards have no true merge for this statement
├── TooManyRows           a fan-out would hold more rows than it may
├── ShardUnavailable      a shard did not answer
├── BucketMoved           the shard does not own the bucket, and the map did not say better in time
├── CatalogUnavailable    the shard map could not be read and none is known
├── MapConflict           somebody else changed the map first
├── GuardRefused          the guard cannot be installed over these tables
├── PartitionsRefused     the table cannot get monthly partitions
└── BadCursor             a cursor that was not made here
"""

from __future__ import annotations


class ShardingError(Exception):
    """The root of all errors of this package."""


class NotAKey(ShardingError, ValueError):
    """The value cannot be a sharding key, a bucket or an id that carries one."""


class UnknownShard(ShardingError):
    """No engine (or no placement) goes by this name. `shard` is the name."""

    def __init__(self, shard: str, message: str) -> None:
        super().__init__(message)
        self.shard = shard


class CannotPlace(ShardingError):
    """The statement cannot be placed. `table` is the table (or what stands for it); the message says what to add."""

    def __init__(self, table: str, message: str) -> None:
        super().__init__(f"{table}: {message}")
        self.table = table


class CannotMerge(ShardingError):
    """Answers of several shards cannot be merged truly. `what` names the part of the statement."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(f"{what}: {message}")
        self.what = what


class TooManyRows(ShardingError):
    """A fan-out met, or would meet, more rows than its bound."""


class ShardUnavailable(ShardingError):
    """A shard did not answer. `shard` is its name, `reason` what was seen."""

    def __init__(self, shard: str, reason: str) -> None:
        super().__init__(f"shard {shard} is unavailable: {reason}")
        self.shard = shard
        self.reason = reason


class BucketMoved(ShardingError):
    """A write was refused by the guard for longer than the retry limit. The work had no effect."""


class CatalogUnavailable(ShardingError):
    """The shard map could not be read, and no earlier one is known."""


class MapConflict(ShardingError):
    """The map is not at the version that the change was made from. `version` is the one that it is at."""

    def __init__(self, expected: int, version: int) -> None:
        super().__init__(
            f"the shard map is at version {version}, the change was made from version {expected}: plan again"
        )
        self.version = version


class GuardRefused(ShardingError):
    """The guard cannot stand over these tables; the message names each with what to mend."""


class PartitionsRefused(ShardingError):
    """The table is not one that gets monthly partitions, or somebody kept it locked for too long."""


class BadCursor(ShardingError, ValueError):
    """The cursor is malformed, or signed with another key or for another scope."""
