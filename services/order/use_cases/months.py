"""The months of the orders table: made ahead of their first order."""

from __future__ import annotations

import asyncio

from services.kit.database import Store
from services.kit.runtime import Runtime
from services.order.config import MONTHS_AHEAD
from services.order.tables import orders
from sharding import ensure_months


class Months:
    """Keeps a partition ready for every coming month, on every shard."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def ensure(self) -> None:
        """Makes this month and the next MONTHS_AHEAD where they are missing. Replicas may do it at once."""
        await asyncio.gather(*(self._ensure_on(store) for store in self._runtime.stores))

    async def _ensure_on(self, store: Store) -> None:
        async with store.engine.connect() as connection:
            await ensure_months(connection, orders.name, ahead=MONTHS_AHEAD, now=self._runtime.clock())
            await connection.commit()
