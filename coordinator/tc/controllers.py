"""The coordinator's HTTP but for messages (see door.py): bodies in and out by msgspec."""

import asyncio
import time
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from litestar import MediaType, Request, Response, get, post
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler

from coordinator.protocol import messages as wire
from coordinator.protocol.messages import Confirm
from coordinator.protocol.statuses import Decision, Settlement
from coordinator.tc import metrics, views
from coordinator.tc.auth import CALLER
from coordinator.tc.config import OPERATOR
from coordinator.tc.core.checks import problem_with
from coordinator.tc.desk import Resolve, unknown
from coordinator.tc.problems import UNREADABLE_ERRORS, Problem, bad_request, unreadable
from coordinator.tc.replica import Replica

URL_LENGTH_MAX = 500
PAGE_DEFAULT = 50
AGE_MAX_S = 10 * 366 * 86_400

T = TypeVar("T")
HttpRequest = Request[Any, Any, State]

_wait = msgspec.json.Decoder(wire.Wait)
_report = msgspec.json.Decoder(wire.Report)
_pulse = msgspec.json.Decoder(wire.Pulse)
_resolve = msgspec.json.Decoder(Resolve)
_announce = msgspec.json.Decoder(wire.Announce)
_encoder = msgspec.json.Encoder()


@post("/v1/wait", status_code=200)
async def wait(request: HttpRequest) -> Response[bytes]:
    """Held open until the holder or the waiter is decided, or the time is over."""
    message = await _read(request, _wait)
    if wrong := problem_with(message):
        raise bad_request(f"The wait cannot be taken: {wrong}.")
    left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    watching = asyncio.create_task(_watch(request, left))
    try:
        return _json(await _replica(request).waits.wait(message, request.scope["state"][CALLER], left))
    finally:
        watching.cancel()


@post("/v1/resources", status_code=204)
async def announce(request: HttpRequest) -> None:
    """Where a resource can be nudged, for as long as it says so again."""
    message = await _read(request, _announce)
    if not _is_address(message.nudge_url):
        shown = message.nudge_url[:URL_LENGTH_MAX]
        raise bad_request(f"{shown!r} is no address to nudge; send an absolute http or https URL.")
    if not 0 < len(message.resource) <= wire.NAME_LENGTH_MAX or not message.resource.isprintable():
        raise bad_request(f"The resource's name has to have 1 to {wire.NAME_LENGTH_MAX} printable characters.")
    replica, caller = _replica(request), request.scope["state"][CALLER]
    other = await replica.store.announce(message.resource, message.nudge_url, caller)
    if other is not None:
        lapse_s = replica.limits.resource_lapse_s
        raise Problem(
            409,
            "resource-taken",
            f"{message.resource} belongs to {other}. Use another name, or wait until it is silent for {lapse_s:g} s.",
        )
    replica.nudger.announced(message.resource)


@get("/v1/transactions")
async def list_transactions(
    request: HttpRequest,
    decision: str | None = None,
    settlement: str | None = None,
    name: str | None = None,
    resource: str | None = None,
    older_than_s: float | None = None,
    limit: int = PAGE_DEFAULT,
    cursor: str | None = None,
) -> Response[bytes]:
    """Transactions from the youngest on, by page."""
    replica = _replica(request)
    most = replica.limits.page_max
    if not 1 <= limit <= most:
        raise bad_request(f"limit is {limit}; send 1 to {most}.")
    if name is not None and not name.isprintable():
        raise bad_request("name has unprintable characters; send the name as it was begun.")
    if resource is not None and not resource.isprintable():
        raise bad_request("resource has unprintable characters; send the name as it was announced.")
    if older_than_s is not None and not 0 <= older_than_s <= AGE_MAX_S:
        raise bad_request(f"older_than_s is {older_than_s:g}; send 0 to {AGE_MAX_S} seconds.")
    wanted = views.Filter(
        None if decision is None else Decision[_word("decision", decision, list(Decision.__members__))],
        None if settlement is None else Settlement[_word("settlement", settlement, list(Settlement.__members__))],
        name,
        resource,
        None if older_than_s is None else round((time.time() - older_than_s) * 1000),
    )
    return _json(await views.page(replica.store, limit, None if cursor is None else _uuid("cursor", cursor), wanted))


@get("/v1/transactions/{xid:str}")
async def show_transaction(request: HttpRequest, xid: str) -> Response[bytes]:
    """All that is known about one transaction."""
    detail = await views.detail(_replica(request).store, _uuid("xid", xid))
    if detail is None:
        raise unknown(_uuid("xid", xid))
    body = msgspec.structs.asdict(detail)
    return _json({**msgspec.structs.asdict(body.pop("transaction")), **body})


@post("/v1/transactions/{xid:str}/retry", status_code=200)
async def retry_transaction(request: HttpRequest, xid: str) -> Response[bytes]:
    """Tells the resources of an unsettled transaction once more, at once. For the operator."""
    _only_operator(request)
    return _json({"told": await _replica(request).desk.retry(_uuid("xid", xid))})


@post("/v1/transactions/{xid:str}/resolve", status_code=200)
async def resolve_transaction(request: HttpRequest, xid: str) -> Response[bytes]:
    """Takes a person's decision about a quarantine, and answers with it and what has come of it. For the operator."""
    operator = _only_operator(request)
    message = await _read(request, _resolve)
    return _json(await _replica(request).desk.resolve(_uuid("xid", xid), message, operator))


@get("/v1/resolutions/{resolution_id:str}")
async def show_resolution(request: HttpRequest, resolution_id: str) -> Response[bytes]:
    """One decision of a person, with what came of it."""
    try:
        return _json(await views.resolution(_replica(request).store, _uuid("resolution_id", resolution_id)))
    except KeyError as error:
        raise Problem(404, "not-found", f"No decision {resolution_id} was ever taken down.") from error


@get("/v1/waits")
async def wait_graph(request: HttpRequest) -> Response[bytes]:
    """Who waits for whom now, over all replicas."""
    return _json({"items": await views.wait_graph(_replica(request).store)})


@post("/v1/quarantine", status_code=200)
async def report(request: HttpRequest) -> Response[bytes]:
    """What a resource says about its quarantine; the answer is the decision that waits for it."""
    message = await _read(request, _report)
    if wrong := problem_with(Confirm(message.xid, message.resource, message.states)):
        raise bad_request(f"The report cannot be taken: {wrong}.")
    return _json(await _replica(request).desk.report(message, request.scope["state"][CALLER]))


@post("/v1/resources/pulse", status_code=200)
async def pulse(request: HttpRequest) -> Response[bytes]:
    """A resource's life sign."""
    message = await _read(request, _pulse)
    if not 0 < len(message.resource) <= wire.NAME_LENGTH_MAX or not message.resource.isprintable():
        raise bad_request(f"The resource's name has to have 1 to {wire.NAME_LENGTH_MAX} printable characters.")
    if not (0 <= message.before_ms <= wire.DEADLINE_MAX_MS and 0 <= message.beats < 2**63):
        raise bad_request("beats or before_ms is out of range; send what at.pulse says.")
    return _json(await _replica(request).desk.pulse(message))


@get("/metrics")
async def figures(request: HttpRequest) -> Response[bytes]:
    """Figures in Prometheus' text format. Open to everybody who can reach the port, as the probes are."""
    return Response((await metrics.text(_replica(request))).encode(), media_type=metrics.MEDIA_TYPE)


@get("/v1/statistics")
async def statistics(request: HttpRequest) -> Response[bytes]:
    """What is not finished, over all replicas, and what this replica did since its start."""
    replica = _replica(request)
    body = {
        **await views.counts(replica.store),
        "replica": {"id": str(replica.replica_id), **replica.statistics()},
    }
    return _json(body)


@get("/health")
async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "live"}


@get("/ready")
async def ready(request: HttpRequest) -> dict[str, str]:
    """The store answers; else a 503 problem."""
    await _replica(request).store.ping()
    return {"status": "ready"}


HANDLERS: tuple[BaseRouteHandler, ...] = (
    wait, announce, list_transactions, show_transaction, retry_transaction, resolve_transaction, show_resolution,
    wait_graph, report, pulse, statistics, figures, health, ready,
)  # fmt: skip


def _only_operator(request: HttpRequest) -> str:
    """The caller's name. Raises Problem (403) for everybody but the operator."""
    caller: str = request.scope["state"][CALLER]
    if caller != OPERATOR:
        raise Problem(403, "operator-only", f"Only {OPERATOR} may decide here, not {caller}.")
    return caller


def _replica(request: HttpRequest) -> Replica:
    replica: Replica = request.app.state.replica
    return replica


async def _read(request: HttpRequest, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(await request.body())
    except UNREADABLE_ERRORS as error:
        raise unreadable(error) from error


def _json(body: object) -> Response[bytes]:
    return Response(_encoder.encode(body), media_type=MediaType.JSON)


def _is_address(text: str) -> bool:
    """Whether a nudge can be posted there: an absolute URL with a host and, if any, a port that exists."""
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        return False
    known = url.scheme in ("http", "https") and bool(url.hostname)
    return known and text.isprintable() and " " not in text and len(text) <= URL_LENGTH_MAX


def _uuid(what: str, text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise bad_request(f"{what} is {text!r}, which is no UUID.") from error


def _word(what: str, text: str, words: list[str]) -> str:
    """One of `words`, in any case, or its number."""
    numbers = {str(number): word for number, word in enumerate(words)}
    if text in numbers:
        return numbers[text]
    if text.upper() in words:
        return text.upper()
    raise bad_request(f"{what} is {text!r}; send one of {', '.join(words)}.")


async def _watch(request: HttpRequest, left: asyncio.Future[None]) -> None:
    """Ends a wait when its caller hangs up: the wait must not be seen as part of a cycle any longer."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
    if not left.done():
        left.set_result(None)
