"""The shard map: which shard holds which bucket. A value; every change makes another one with a higher version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NewType

from sharding.buckets import BUCKET_COUNT, Bucket, bucket
from sharding.errors import ShardingError, UnknownShard

ShardId = NewType("ShardId", str)
"""The name of a shard, such as ``shard-0``. A name survives a change of address."""


@dataclass(frozen=True)
class ShardMap:
    """All placements at one version. `placements[bucket]` is the shard that owns the bucket.

    Raises ShardingError unless there are exactly BUCKET_COUNT placements, each with a name.
    """

    version: int
    placements: tuple[ShardId, ...]

    def __post_init__(self) -> None:
        if len(self.placements) != BUCKET_COUNT or not all(self.placements):
            raise ShardingError(f"a shard map places all {BUCKET_COUNT} buckets, this one {len(self.placements)}")

    @property
    def shards(self) -> tuple[ShardId, ...]:
        """The shards that own at least one bucket, by name."""
        return tuple(sorted(set(self.placements)))

    def shard_of(self, where: Bucket) -> ShardId:
        """The shard that owns a bucket. Raises NotAKey when it is none."""
        return self.placements[bucket(where)]

    def buckets_of(self, shard: ShardId) -> frozenset[Bucket]:
        """The buckets of a shard; none when it owns none."""
        return frozenset(Bucket(number) for number, owner in enumerate(self.placements) if owner == shard)

    def by_shard(self, buckets: Iterable[Bucket] | None = None) -> dict[ShardId, frozenset[Bucket]]:
        """`buckets` (all without) grouped by the shard that owns them, in the order of the shards' names."""
        groups: dict[ShardId, set[Bucket]] = {}
        for number in range(BUCKET_COUNT) if buckets is None else buckets:
            groups.setdefault(self.placements[number], set()).add(Bucket(number))
        return {shard: frozenset(groups[shard]) for shard in sorted(groups)}


def even_map(shards: Sequence[ShardId], version: int = 1) -> ShardMap:
    """The first map of a fleet: each shard gets one run of neighbouring buckets, sizes differ by one at most."""
    if not shards or len(set(shards)) != len(shards):
        raise UnknownShard(",".join(shards), "an even map needs at least one shard, and each only once")
    count = len(shards)
    return ShardMap(version, tuple(shards[number * count // BUCKET_COUNT] for number in range(BUCKET_COUNT)))


def with_placements(map: ShardMap, changes: Mapping[Bucket, ShardId]) -> ShardMap:
    """The map after `changes`, at the next version. A change to the owner that a bucket has already is allowed."""
    placements = list(map.placements)
    for where, shard in changes.items():
        placements[bucket(where)] = shard
    return ShardMap(map.version + 1, tuple(placements))
