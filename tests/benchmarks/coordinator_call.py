"""What one call to the coordinator costs its client: our wire against aiohttp, in turn, to the same server.

`cpu_ratio` is the processor time of a call through `coordinator.client.wire` over that of the same call through an
aiohttp session (the C parser, keep-alive, no cookies), the median of the rounds' ratios.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import aiohttp  # noqa: E402
import uvloop  # noqa: E402

from coordinator.client.wire import Origin, Wire  # noqa: E402

ROUNDS = 9
CALLS = 1500
GOALS = {"cpu_ratio": ["<=", 0.5]}
BODY = b'[{"type":"decide","xid":"0199a0f4-7e1c-7a41-9c64-1f0b6d1c2a3e","name":"transfer","commit":true}]'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)

Call = Callable[[], Awaitable[bytes]]


class Answering(asyncio.Protocol):
    """Answers whatever comes, so that next to nothing of the measured time is the server's."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol; a request as short as ours comes in one piece, or in two with the head first."""
        if data.endswith(BODY):
            self._transport.write(ANSWER)


async def cpu_us(call: Call) -> float:
    """Microseconds of processor time for a call."""
    began = time.process_time()
    for _ in range(CALLS):
        if await call() != BODY:
            raise RuntimeError("the answer is not the one that was sent")
    return (time.process_time() - began) / CALLS * 1e6


async def measure() -> dict[str, float]:
    """Both ways in turn, each round in the other order."""
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    origin, wire = Origin.of(f"http://127.0.0.1:{port}"), Wire(connections_max=8, connect_timeout_s=1.0)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def ours() -> bytes:
            return (await wire.request(origin, "POST", "/v1/messages", b"", BODY, 5.0)).body

        async def theirs() -> bytes:
            async with session.post(f"http://127.0.0.1:{port}/v1/messages", data=BODY) as response:
                return await response.read()

        ratios = []
        for number in range(ROUNDS):
            order = (ours, theirs) if number % 2 else (theirs, ours)
            spent = {call: await cpu_us(call) for call in order}
            ratios.append(spent[ours] / spent[theirs])
            print(f"ours {spent[ours]:.0f} us, aiohttp {spent[theirs]:.0f} us", file=sys.stderr)
    wire.close()
    server.close()
    return {"cpu_ratio": round(statistics.median(ratios), 3)}


def main() -> None:
    """Prints the benchmark's object."""
    figures = uvloop.run(measure())
    machine = f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, {platform.system()}"
    print(
        json.dumps({"name": "coordinator-call", "figures": figures, "goals": GOALS, "runs": ROUNDS, "machine": machine})
    )


if __name__ == "__main__":
    main()
