"""Clean-up of a local transaction under cancellation."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.client.local import sheltered


async def test_clean_up_ends_before_a_cancellation_goes_on() -> None:
    """However often it is cancelled: what comes next would work on a session that is still being rolled back."""
    ended: list[str] = []

    async def roll_back() -> None:
        await asyncio.sleep(0.05)
        ended.append("rolled back")

    async def whole() -> None:
        try:
            await sheltered(roll_back())
        finally:
            ended.append("closed")

    task = asyncio.create_task(whole())
    for _ in range(3):
        await asyncio.sleep(0.005)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["rolled back", "closed"]


async def test_what_clean_up_returns_or_raises_comes_through() -> None:
    """Without a cancellation it is a call like any other."""

    async def well() -> int:
        return 7

    async def badly() -> None:
        raise OSError("gone")

    assert await sheltered(well()) == 7
    with pytest.raises(OSError, match="gone"):
        await sheltered(badly())


async def test_clean_up_that_does_not_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that hangs holds nobody for longer than the limit."""
    monkeypatch.setattr("coordinator.client.local.CLEAN_UP_TIMEOUT_S", 0.02)
    assert await sheltered(asyncio.sleep(60)) is None
