"""The monitor: once a second it measures the machine and the instance and tells the broker.

It measures; the broker decides. It writes no table of the arena but its own heartbeat, and no file. Whoever wants to
look at each sample (alerts will) is given to `Monitor` as a watcher.

Invariants
- A sample that is lost does no harm: the next one says everything again.
- Watching costs less than a hundredth of a core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from actors import runtime
from actors.monitor.sample import Sampler
from broker.contract.boot import Boot
from broker.contract.machine import budget, probe
from shm.live.heartbeat import Heartbeats

__all__ = ["SAMPLE_NS", "Monitor", "main"]

SAMPLE_NS = 1_000_000_000

Watcher = Callable[[dict[str, Any]], None]


class Monitor:
    """The actor. `watchers` see each sample before it is sent and must not block."""

    def __init__(self, watchers: Sequence[Watcher] = ()) -> None:
        self._watchers = tuple(watchers)
        self._due_ns = 0

    async def start(self, ctx: runtime.Context) -> None:
        """Probe the machine once for its limits; what is used of them is looked at every second."""
        self._ctx = ctx
        self._heartbeats = Heartbeats(ctx.arena)
        share = float(ctx.boot.settings["budget"]["share"])
        machine = probe(ctx.state.root)
        self._sampler = Sampler(ctx.state.root, ctx.boot.arena_name, budget(machine, share), share)

    def step(self) -> None:
        """Sample if a second has passed; a sample that was missed is not made up for."""
        now_ns = time.monotonic_ns()
        if now_ns < self._due_ns:
            return
        self._due_ns = max(self._due_ns + SAMPLE_NS, now_ns + SAMPLE_NS // 2)
        boot = self._ctx.boot
        processes = {boot.broker_pid: boot.broker_starttime}
        processes |= {row.pid: row.starttime for row in self._heartbeats.rows() if row.pid}
        data = self._sampler.sample(processes.items(), now_ns)
        for watch in self._watchers:
            watch(data)
        self._ctx.send({"type": "sample", "data": data})

    def on_message(self, message: dict[str, Any]) -> None:
        """The broker tells the monitor nothing yet: every message is for others."""

    async def drain(self, now: bool) -> None:
        """Nothing is held, so there is nothing to finish."""


def main(boot: Boot) -> None:
    """Run the monitor of `boot`; returns by SystemExit."""
    runtime.run(boot, Monitor)
