"""The connections of this sender to each relay: when to open another, when to rest, when to let one go.

- Never more connections than the broker's allowance for this sender; it shares a relay's limit out.
- A connection is opened when there are rows for it and every other one is busy; twice as many at a time as are
  open, so that a distant relay is reached in a few round trips and a near one is not flooded.
- What fails (to connect, to log in, or a connection that dies before its first answer) is the relay's fault and is
  told in the arena; openings back off; no recipient is charged for it.
- One watchdog for all deadlines, once a second.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from actors.sender.connection import Connection
from actors.smtp.outcome import Connection as Action
from actors.smtp.outcome import Outcome
from actors.smtp.rules import About
from actors.smtp.session import SessionError, deadline_s, open_session
from actors.smtp.transaction import Concluded, Event, Mode, Stage
from broker.contract.endpoint import Endpoint
from shm.live import relays as table
from shm.live.relays import RelayTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.sender.lease import Lease
    from actors.sender.walk import Walk

__all__ = ["Pool", "backoff_s"]

CAP_FIRST: Final = 16  # connections to begin with; while all of these are busy and rows wait, a quarter more a second
BACKOFF_FIRST_S: Final = 0.25
BACKOFF_MAX_S: Final = 15.0
STEPPED_DOWN_S: Final = 600.0  # how long a mode that misbehaved is avoided
WATCH_NS: Final = 1_000_000_000
SECOND_NS: Final = 1_000_000_000


def backoff_s(failures: int, noise: float) -> float:
    """How long to wait after the n-th failure in a row (from 1): doubling, capped, and up to half as long again.

    noise  0..1, so that the senders do not knock together
    """
    return min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16), BACKOFF_MAX_S) * (1 + noise / 2)


class Pool:
    """The connections to one relay.

    index   the relay's place in the settings and in the arena's table
    lanes   leases that have something to send through it, in the order of their turns
    free    connections with nothing in flight, the one used last on top
    """

    def __init__(
        self, index: int, relay: Endpoint, row: int, relay_table: RelayTable, walk: Walk, fault: Callable[[str], None]
    ) -> None:
        self.index = index
        self.relay = relay
        self.lanes: deque[Lease] = deque()
        self.free: list[Connection] = []
        self.connections: set[Connection] = set()
        self._walk = walk
        self._row = row
        self._table = relay_table
        self._words = relay_table.words(row, index)
        for word in (table.CONNECTIONS, table.REFUSALS, table.FAILURES, table.MODE, table.CLOSE_COUNT):
            self._words[word] = 0
        self._fault = fault
        self._opening: set[asyncio.Task[None]] = set()
        self._failed = 0  # in a row
        self._not_before_ns = 0
        self._cap = CAP_FIRST
        self._ceiling = Mode.BDAT
        self._ceiling_until_ns = 0
        self._watched_ns = 0
        self._closed = False

    @property
    def hopeful(self) -> bool:
        """Whether rows claimed for this relay have a way to go: an open connection, or one about to open."""
        return bool(self.connections or (not self._failed and self._allowed() > 0))

    @property
    def connected(self) -> bool:
        """Whether a connection is open."""
        return bool(self.connections)

    def _allowed(self) -> int:
        return 0 if self._closed else min(self._table.allowance(self._row, self.index), self._cap)

    # Opening.

    def grow(self, now_ns: int, *, wanted: bool) -> None:
        """Open connections if there is need: the first when anybody wants one, more when rows wait for all of them."""
        have = len(self.connections)
        crowded = bool(self.lanes) and not self.free
        if not crowded and (have or not wanted):
            return
        if now_ns < self._not_before_ns:
            return
        together = max(have, 1) if crowded else 1
        for _ in range(min(together - len(self._opening), self._allowed() - have - len(self._opening))):
            task = asyncio.get_running_loop().create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        try:
            session = await open_session(self.relay, ceiling=self._mode_ceiling())
            if self._closed:
                session.close()
                return
            connection = Connection(self._walk, self, session, self.relay.messages_per_connection)
            session.take_over(connection)
        except SessionError as error:
            refused = error.reply is not None and error.reply.code < 500
            self._words[table.REFUSALS if refused else table.FAILURES] += 1
            self._fail(str(error))
            return
        self._failed = 0
        self.connections.add(connection)
        self._tell(session.mode)
        self._walk.refill(connection, b"")

    def _mode_ceiling(self) -> Mode:
        """The best mode to speak: what the broker allows, and the relay did not break lately."""
        if time.monotonic_ns() > self._ceiling_until_ns:
            self._ceiling = Mode.BDAT
        allowed = self._table.mode_ceiling(self._row, self.index) or Mode.BDAT
        return Mode(min(self._ceiling, allowed))

    def _tell(self, mode: int = 0) -> None:
        self._words[table.CONNECTIONS] = len(self.connections)
        if mode:
            self._words[table.MODE] = mode
        self._words[table.SINCE_NS] = time.monotonic_ns()

    def _fail(self, reason: str) -> None:
        now_ns = time.monotonic_ns()
        if now_ns >= self._not_before_ns:  # of several attempts that fail together only one counts
            self._failed += 1
            self._not_before_ns = now_ns + int(backoff_s(self._failed, random.random()) * SECOND_NS)
        if self.connections:
            self._cap = len(self.connections)  # it takes no more just now
        self._fault(f"relay `{self.relay.name}` ({self.relay.host}:{self.relay.port}): {reason}")

    # Use.

    def rest(self, connection: Connection) -> None:
        """A connection has nothing to do: it waits for work, or leaves if it has carried all it may."""
        if connection.left <= 0 or self._closed:
            connection.leave()
            return
        connection.waiting = True
        self.free.append(connection)

    def heard(self, outcome: Outcome, concluded: Concluded) -> None:
        """A verdict that was not plain acceptance: what it says of the relay."""
        if outcome.action is Action.STEP_DOWN and self._ceiling > Mode.LOCKSTEP:
            self._ceiling = Mode(self._ceiling - 1)
            self._ceiling_until_ns = time.monotonic_ns() + int(STEPPED_DOWN_S * SECOND_NS)
            self._fault(f"relay `{self.relay.name}` lost step: {self._ceiling.name.lower()} for a while")
        if concluded.event is Event.CLOSING:
            self._words[table.REFUSALS] += 1
        if outcome.blame is About.SENDER and concluded.reply is not None:
            self._fault(f"relay `{self.relay.name}` blames the sender: {concluded.reply}")

    def lost(self, connection: Connection, reason: str) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if connection.waiting:
            connection.waiting = False
            self.free.remove(connection)
        self._tell()
        if connection.closed_after:
            least = self._words[table.CLOSE_COUNT] or connection.closed_after
            self._words[table.CLOSE_COUNT] = min(least, connection.closed_after)
        if connection.made_no_progress and not self._closed:
            self._words[table.FAILURES] += 1
            self._fail(f"the connection died before its first answer: {reason or 'closed by the relay'}")

    # Time.

    def tick(self, now_ns: int, *, wanted: bool) -> None:
        """Grow, and once a second look at deadlines and idle connections."""
        self.grow(now_ns, wanted=wanted)
        if now_ns - self._watched_ns < WATCH_NS:
            return
        self._watched_ns = now_ns
        if self.lanes and not self.free and len(self.connections) >= self._cap and now_ns >= self._not_before_ns:
            self._cap += max(1, self._cap // 4)
        limits = {stage: int(deadline_s(self.relay, stage) * SECOND_NS) for stage in Stage}
        for connection in [c for c in self.connections if c.overdue(now_ns, limits)]:
            connection.break_off("timeout")
        idle_ns = limits[Stage.IDLE]
        for connection in [c for c in self.free if now_ns - c.used_ns > idle_ns]:
            self._dismiss(connection)

    def _dismiss(self, connection: Connection) -> None:
        self.free.remove(connection)
        connection.waiting = False
        connection.leave()

    def close(self) -> None:
        """Open nothing more; let go of what has nothing in flight, and of the rest when it has."""
        self._closed = True
        for task in self._opening:
            task.cancel()
        for connection in list(self.free):
            self._dismiss(connection)

    def abort(self) -> None:
        """Drop every connection now; what was in flight is concluded as lost."""
        self.close()
        for connection in list(self.connections):
            connection.break_off("lost")
