"""A fleet in figures: how buckets and rows are spread over the shards. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sharding.buckets import BUCKET_COUNT, Bucket
from sharding.shard_map import ShardId, ShardMap


@dataclass(frozen=True)
class ShardStatus:
    """One shard. `rows` and `foreign_rows` are None where the shard gave no counts.

    `foreign_rows` lie in buckets that the map places elsewhere: the leftovers of a move, or a fault. `share` is the
    shard's part of all its own rows known, 0 to 1; of the buckets while no rows are known.
    """

    shard: ShardId
    buckets: int
    rows: int | None
    foreign_rows: int | None
    share: float


@dataclass(frozen=True)
class FleetStatus:
    """All shards at one version of the map. `skew` is the largest share over the even one: 1.0 is perfectly even."""

    version: int
    shards: tuple[ShardStatus, ...]
    rows: int
    skew: float
    silent: tuple[ShardId, ...]
    """Shards of the map that gave no counts."""


def summarize(map: ShardMap, counts: Mapping[ShardId, Mapping[Bucket, int]]) -> FleetStatus:
    """The fleet under `map`, where `counts[shard][bucket]` is a number of rows. Shards may be missing or new."""
    owned = map.by_shard()
    names = sorted({*owned, *counts})
    own = {
        shard: sum(rows for where, rows in counts[shard].items() if map.placements[where] == shard)
        for shard in names
        if shard in counts
    }
    total = sum(own.values())
    shards = []
    for shard in names:
        buckets = len(owned.get(shard, ()))
        share = own.get(shard, 0) / total if total else buckets / BUCKET_COUNT
        foreign = sum(counts[shard].values()) - own[shard] if shard in counts else None
        shards.append(ShardStatus(shard, buckets, own.get(shard), foreign, share))
    skew = max(status.share for status in shards) * len(shards)
    return FleetStatus(map.version, tuple(shards), total, skew, tuple(n for n in names if n not in counts))
