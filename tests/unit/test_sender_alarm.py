"""The fine timer of the pace (actors/sender/alarm.py)."""

from __future__ import annotations

import asyncio
import time

import uvloop

from actors.sender.alarm import Alarm


def test_rings_at_the_earliest_time_asked_for_and_never_before_it() -> None:
    """Of several times asked for the earliest rings, once, and not early."""

    async def scenario() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        rung: asyncio.Future[int] = loop.create_future()
        alarm = Alarm(loop, lambda: rung.set_result(time.monotonic_ns()))
        wanted = time.monotonic_ns() + 3_300_000
        for later in (2, 0, 1):
            alarm.at(wanted + later * 10_000_000)
        at = await asyncio.wait_for(rung, 2)
        alarm.close()
        return wanted, at

    wanted, at = uvloop.run(scenario())
    assert wanted <= at < wanted + 1_000_000_000


def test_a_time_that_has_passed_rings_at_once_and_it_can_be_set_again() -> None:
    """A past time is due now; after ringing the alarm takes a new time."""

    async def scenario() -> int:
        loop = asyncio.get_running_loop()
        rings: asyncio.Queue[None] = asyncio.Queue()
        alarm = Alarm(loop, lambda: rings.put_nowait(None))
        for number in range(3):
            alarm.at(time.monotonic_ns() - number)
            await asyncio.wait_for(rings.get(), 2)
        alarm.close()
        return rings.qsize()

    assert uvloop.run(scenario()) == 0
