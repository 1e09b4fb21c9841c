"""How long somebody who has the packages waits for a first booking: from `up` in a new folder to 201 for an order.

In between lies all that a booking needs: an owner and a provider who register and are approved, a listing that passes
moderation, a pet and a quote. `up_s` is when `up` returned, `first_booking_s` when the order was answered; both are the
best of the runs, since whatever else the machine does only adds to them.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import aiohttp  # noqa: E402

from deploy.commands.demo import Target  # noqa: E402
from deploy.demo import Report  # noqa: E402
from deploy.demo.cast import Cast, tonight  # noqa: E402
from deploy.demo.world import Api, Databases  # noqa: E402
from deploy.embedded.system import EmbeddedSystem  # noqa: E402
from tests.support.servers import free_port  # noqa: E402

RUNS = 2
GOALS = {"first_booking_s": ["<=", 15]}
NIGHTS = 3


def measure() -> tuple[float, float]:
    """Seconds until `up` returned, and until the first booking was answered 201, in a folder that is new."""
    with tempfile.TemporaryDirectory(prefix="pawstay-first-") as folder:
        system = EmbeddedSystem(Path(folder) / "data")
        began = time.monotonic()
        command = [sys.executable, "-P", "-m", "deploy.cli", "up", "--detach", "--data", str(system.folder)]
        try:
            subprocess.run([*command, "--port", str(free_port())], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            up_s = time.monotonic() - began
            asyncio.run(book(system))
            return up_s, time.monotonic() - began
        finally:
            system.down()


async def book(system: EmbeddedSystem) -> None:
    """Everything up to the first booking, through the gateway. Raises Failed when a step is refused."""
    target = Target(system, system.gateway_url, system.admin_password)
    async with aiohttp.ClientSession() as session:
        cast = Cast(target, Api(target.gateway_url, session), Databases({}), Report(console=None))
        cast.people["admin"] = await cast.log_in("admin", target.admin_password)
        owner, provider = await asyncio.gather(cast.approved("owner"), cast.approved_provider("provider"))
        listing, pet = await asyncio.gather(cast.listing(provider, "阳光小院", {"dog-M": 1}), cast.pet(owner, "豆豆"))
        quote = await cast.quote(owner, listing, [pet], tonight() + timedelta(days=1), NIGHTS)
        await cast.book(owner, quote["quote"])


def main() -> None:
    """Prints the benchmark object of `deploy.commands.bench`."""
    found = [measure() for _ in range(RUNS)]
    figures = {
        "up_s": round(min(up_s for up_s, _ in found), 1),
        "first_booking_s": round(min(booked_s for _, booked_s in found), 1),
    }
    machine = f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, {platform.system()}"
    print(json.dumps({"name": "first-booking", "figures": figures, "goals": GOALS, "runs": RUNS, "machine": machine}))


if __name__ == "__main__":
    main()
