"""The scenes, in their order, and how they are run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from asyncpg.exceptions import InterfaceError, PostgresError

from deploy.demo.cast import Cast
from deploy.demo.faults import coordinator_killed, failing_booking, race_for_places
from deploy.demo.report import Report, SceneResult
from deploy.demo.stay import accounts_and_listing, cancelled_stay, search_and_quote, whole_stay
from deploy.demo.world import COORDINATOR_AWAY, Api, Databases, DemoSystem, Failed
from deploy.embedded.problems import RuntimeProblem

Figures = dict[str, Any]
Play = Callable[[Cast], Awaitable[tuple[Figures, str]]]
CONNECTIONS_MAX = 60
BROKEN = (
    RuntimeProblem,
    OSError,
    aiohttp.ClientError,
    PostgresError,
    InterfaceError,
    TimeoutError,
    LookupError,
    TypeError,
)
"""What a scene throws, beside Failed, when the system is broken under it."""


@dataclass(frozen=True)
class Scene:
    """A scene: what it is called, what it proves, and how it goes."""

    name: str
    proves: str
    play: Play


SCENES: tuple[Scene, ...] = (
    Scene(
        "accounts", "people register, an administrator approves them and a listing is published", accounts_and_listing
    ),
    Scene("search", "a listing is found by text, dates, pet and price, and quoted line by line", search_and_quote),
    Scene("stay", "a booking is one global transaction over shards and services, up to its settlement", whole_stay),
    Scene("failing-booking", "a booking that fails in its last branch leaves every table as it was", failing_booking),
    Scene("race", "fifty at once for three places: exactly three, with Redlock and without", race_for_places),
    Scene(
        "coordinator-killed",
        "the coordinator dies between a branch and its decision: nothing stuck",
        coordinator_killed,
    ),
    Scene("cancelled-stay", "a cancelled stay frees money, nights and pet", cancelled_stay),
)


async def run(system: DemoSystem, report: Report, only: tuple[str, ...] = ()) -> None:
    """Plays the scenes (all, or those in `only` with the accounts that they need) and ends with the closing check."""
    databases = Databases(system.databases())
    connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
    async with aiohttp.ClientSession(connector=connector) as session:
        cast = Cast(system, Api(system.gateway_url, session), databases, report)
        try:
            for number, scene in enumerate(SCENES, 1):
                if only and scene.name not in only and scene.name != "accounts":
                    continue
                await _play(number, scene, cast, report)
                if scene.name == "accounts" and report.failed:
                    return
            await _play(len(SCENES) + 1, CLOSING, cast, report)
        finally:
            _wake_coordinator(system)
            await databases.close()


async def _play(number: int, scene: Scene, cast: Cast, report: Report) -> None:
    report.begin(number, scene.name, scene.proves)
    started = time.monotonic()
    try:
        figures, detail = await scene.play(cast)
        verdict = "ok"
    except Failed as error:
        figures, detail, verdict = {}, str(error), "failed"
    except BROKEN as error:
        figures, detail, verdict = {}, f"{type(error).__name__}: {error}", "failed"
    figures = {**figures, "seconds": round(time.monotonic() - started, 2)}
    report.add(SceneResult(scene.name, scene.proves, verdict, figures, detail))


async def _nothing_left(cast: Cast) -> tuple[Figures, str]:
    waited_s = await cast.quiet()
    ledger = (await cast.databases.rows("payment", "SELECT coalesce(sum(amount_cents), 0) AS n FROM ledger_entries"))[0]
    if ledger["n"] != 0:
        raise Failed(f"the ledger sums to {ledger['n']} cents instead of 0")
    over = (await cast.databases.rows("capacity", "SELECT count(*) AS n FROM nights WHERE held + booked > total"))[0]
    if over["n"]:
        raise Failed(f"{over['n']} nights are above their total")
    figures = {"ledger_sum_cents": 0, "locks": 0, "nights_over_total": 0, "undecided": 0, "quiet_after_s": waited_s}
    return figures, "The ledger sums to zero; no undo row, no lock and no undecided transaction is left."


CLOSING = Scene(
    "nothing-left", "after the story the ledger sums to zero and no undo row and no lock is left", _nothing_left
)


def _wake_coordinator(system: DemoSystem) -> None:
    """A scene that was cut short may have left the coordinator stopped."""
    try:
        os.kill(system.coordinator_pid(), signal.SIGCONT)
    except (OSError, *COORDINATOR_AWAY):
        return
