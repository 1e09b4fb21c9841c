"""A resource as the client knows it: a name, what the application works with, and its settler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from coordinator.client.local import is_sqlalchemy
from coordinator.client.phase_two import OwnConnections, PoolConnections, SettleConnections
from coordinator.protocol.ids import ResourceName
from coordinator.protocol.messages import NAME_LENGTH_MAX

TargetT = TypeVar("TargetT")
"""What work in a resource is given: an AsyncSession for an engine, an asyncpg connection for a pool."""


class Resource(Generic[TargetT]):
    """A database that takes part in global transactions. Made by `Coordinator.resource`."""

    def __init__(self, name: ResourceName, target: Any, identity: object, connections: SettleConnections) -> None:
        self.name = name
        self.target = target
        self.identity = identity
        self.connections = connections

    def __repr__(self) -> str:
        return f"<Resource {self.name}>"


def describe_resource(name: str, target: Any, connect_args: Mapping[str, Any] | None) -> Resource[Any]:
    """The resource for an AsyncEngine or an asyncpg.Pool. Raises TypeError, ValueError (a bad name).

    Phase two on an engine uses a small asyncpg pool of its own, made from the engine's URL and `connect_args`.
    """
    if not 0 < len(name) <= NAME_LENGTH_MAX or not name.isprintable() or any(character in ", " for character in name):
        raise ValueError(
            f"{name!r} is no resource name: it has 1 to {NAME_LENGTH_MAX} printable characters, and no comma or space"
        )
    if isinstance(target, asyncpg.Pool):
        return Resource(ResourceName(name), target, identity_of(target), PoolConnections(target))
    if is_sqlalchemy(target) and hasattr(target, "sync_engine"):

        def arguments() -> dict[str, Any]:
            # SQLAlchemy reads its own URL, so every form of it works here too.
            _, found = target.dialect.create_connect_args(target.url)
            foreign = ("prepared_statement_cache_size", "prepared_statement_name_func", "async_creator_fn")
            return {key: value for key, value in {**found, **(connect_args or {})}.items() if key not in foreign}

        return Resource(ResourceName(name), target, identity_of(target), OwnConnections(arguments))
    raise TypeError(f"a resource needs an AsyncEngine or an asyncpg.Pool, not {type(target).__name__}")


def identity_of(target: Any) -> object:
    """Something that an engine shares with its sessions and a pool with its connections, or None.

    Engines made by `execution_options` are the same database; they share the dialect, also after `dispose`.
    """
    if isinstance(target, asyncpg.Pool):
        return target
    if isinstance(target, PoolConnectionProxy):
        return getattr(getattr(target, "_holder", None), "_pool", None)
    if not is_sqlalchemy(target):
        return None
    if hasattr(target, "sync_engine"):
        return target.sync_engine.dialect
    bind = target.get_bind()
    return bind.dialect
