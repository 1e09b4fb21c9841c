"""Renders the complete Nginx configuration from the routing table. Pure: text from values, nothing is touched.

Needs only modules that every Nginx build has. `resolver` (service names of a container network, re-resolved while
Nginx runs) needs Nginx 1.27.3 or newer. Nginx runs in the foreground (`daemon off`), so that whoever starts it owns it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from coordinator.protocol import ids
from gateway.routes import Limits, RouteTable

UPSTREAM_IDLE_CONNECTIONS = 32
"""Idle connections that each worker keeps to each service."""

UPSTREAM_IDLE_S = 3
"""Must stay below the services' own keep-alive time (uvicorn: 5 s): a connection that the service is closing just as a
POST is sent on it would end in a 502, because such a request is never repeated."""

UPSTREAM_TRIES = 2
UPSTREAM_RETRY_WINDOW_S = 5
"""A request that failed later than this is not tried on another server."""

FAIL_TIMEOUT_S = 2
"""A server that failed is left alone for so long, where there is another one."""

RETRY_AFTER_S = 1

TRANSACTION_HEADERS = (
    ids.HEADER_XID,
    ids.HEADER_BRANCH,
    ids.HEADER_DEADLINE,
    ids.HEADER_BRANCHES,
    "X-Tx-Rollback-Only",  # coordinator.client's own; a test finds every header that is missing here
)
"""Taken off every request from outside and off every answer: only services speak of transactions."""

FORGEABLE_HEADERS = ("Forwarded", "X-Forwarded-Port", "X-Forwarded-Prefix")
"""Taken off every request: the gateway alone says who is calling."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The documentation page may load from, and talk to, this gateway and nothing else."""

PROBLEMS: Mapping[int, tuple[str, str]] = {
    400: ("bad-request", "The request cannot be read. Check its request line, headers and body length."),
    404: ("not-found", "Nothing is served at this path. The paths are listed at /docs."),
    405: ("method-not-allowed", "This method is not possible here."),
    408: ("request-timeout", "The request did not arrive in time. Send it again."),
    413: ("body-too-large", "The body is larger than this path takes. Send less."),
    414: ("uri-too-long", "The address is too long. Shorten the query."),
    429: ("too-many-requests", "Too many requests came from your address. Nothing was done; wait, then try again."),
    431: ("headers-too-large", "The headers are too large. Send fewer or shorter ones."),
    500: ("gateway-error", "The gateway failed. It was recorded under the request id."),
    502: (
        "service-unreachable",
        "The service broke off or cannot be reached. Try again; repeat a booking or payment with the same "
        "Idempotency-Key: it takes effect once.",
    ),
    503: ("gateway-busy", "The gateway has no room. Nothing was done; try again."),
    504: (
        "service-timeout",
        "The service did not answer in time. It may still have done the work: repeat a booking or payment with the "
        "same Idempotency-Key: it takes effect once.",
    ),
}
"""The gateway's own errors: status, code and what to do. What a service answers is passed on as it is."""

RETRYABLE = frozenset({429, 502, 503, 504})

_SERVER = re.compile(r"^(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$")


class RenderError(ValueError):
    """Nothing sensible can be rendered: the message names the value."""


def render(
    table: RouteTable,
    upstreams: Mapping[str, Sequence[str]],
    *,
    port: int,
    prefix_dir: Path | str,
    log_dir: Path | str,
    docs_dir: Path | str,
    resolver: str | None = None,
    user: str | None = None,
    host: str = "127.0.0.1",
    workers: int | Literal["auto"] = "auto",
) -> str:
    """The text of nginx.conf.

    `upstreams` names the servers of each service as `host:port`, one or several; those of services that the table does
    not route are left out. The folders are absolute and may contain spaces; pid and temporary files lie in
    `prefix_dir`, which must exist, as must `log_dir`. `user` ("name" or "name group") is who the workers run as when
    Nginx is started by root (None: the binary's own default; ignored for an ordinary user). `host` is the address to
    listen on.

    Raises RenderError for a service without servers, a server that is no `host:port`, or a folder that Nginx cannot
    name.
    """
    servers = {service: _checked_servers(service, upstreams.get(service, ())) for service in table.services}
    docs = _folder("docs_dir", docs_dir)
    return (
        _environment()
        .get_template("nginx.conf.j2")
        .render(
            table=table,
            servers=servers,
            listen=f"{host}:{port}",
            prefix=_folder("prefix_dir", prefix_dir),
            log=_folder("log_dir", log_dir),
            docs=docs,
            resolver=resolver,
            user=user,
            workers=workers,
            problems={status: problem_body(status) for status in PROBLEMS},
            retryable=RETRYABLE,
            retry_after_s=RETRY_AFTER_S,
            log_format=_log_format(),
            removed_headers=(*TRANSACTION_HEADERS, *FORGEABLE_HEADERS),
            hidden_headers=(*TRANSACTION_HEADERS, "X-Request-Id"),
            content_security_policy=CONTENT_SECURITY_POLICY,
            idle_connections=UPSTREAM_IDLE_CONNECTIONS,
            idle_s=UPSTREAM_IDLE_S,
            tries=UPSTREAM_TRIES,
            retry_window_s=UPSTREAM_RETRY_WINDOW_S,
            fail_timeout_s=FAIL_TIMEOUT_S,
        )
    )


def problem_body(status: int) -> str:
    """The RFC 9457 body of one of the gateway's own errors, with Nginx's variables for the ids still in it."""
    code, detail = PROBLEMS[status]
    title = "Request Header Fields Too Large" if status == 431 else HTTPStatus(status).phrase
    return json.dumps(
        {
            "type": f"urn:pawstay:problem:{code}",
            "title": title,
            "status": status,
            "detail": detail,
            "code": code,
            "request_id": "$gateway_request_id",
            "trace_id": "$gateway_trace_id",
        }
    )


def _log_format() -> str:
    # Paths without their query, and without the secret of a calendar feed: both can carry what nobody should read.
    text = {
        "time": "$time_iso8601",
        "client": "$remote_addr",
        "method": "$request_method",
        "path": "$logged_path",
        "service": "$gateway_service",
        "upstream": "$upstream_addr",
        "upstream_status": "$upstream_status",
        "upstream_s": "$upstream_response_time",
        "request_id": "$gateway_request_id",
        "trace_id": "$gateway_trace_id",
        "user_agent": "$http_user_agent",
    }
    numbers = {"status": "$status", "bytes": "$body_bytes_sent", "duration_s": "$request_time"}
    members = [f'"{k}":"{v}"' for k, v in text.items()] + [f'"{k}":{v}' for k, v in numbers.items()]
    return "{" + ",".join(members) + "}"


def _checked_servers(service: str, servers: Sequence[str]) -> tuple[str, ...]:
    if isinstance(servers, str):
        raise RenderError(f"the servers of {service!r} are a list of host:port, not the text {servers!r}")
    if not servers:
        raise RenderError(f"service {service!r} is routed but has no server")
    for server in servers:
        if not _SERVER.match(server):
            raise RenderError(f"{server!r} (service {service!r}) is no host:port")
    return tuple(servers)


def _folder(name: str, folder: Path | str) -> str:
    text = str(folder)
    if not Path(text).is_absolute():
        raise RenderError(f"{name} must be an absolute path, not {text!r}")
    if "$" in text or not text.isprintable():
        raise RenderError(f"{name} {text!r} contains a character that Nginx cannot name ('$' or a control character)")
    return text.rstrip("/")


def _quoted(text: str) -> str:
    """One argument of a directive, whatever is in it (a `$` still starts a variable where the directive has them)."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _zone(limits: Limits) -> str:
    return f"rate_{limits.name}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - the output is no HTML; every value is checked or quoted
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = _quoted
    environment.filters["zone"] = _zone
    return environment
