"""The connections of this sender to each relay: when to open another, when to rest, when to let one go.

How many there should be is `steering`'s to find; this is how they come and go.

- Never more connections than the broker's allowance for this sender, nor than nine tenths of the process's file
  descriptors; none while the broker says that the relay is tripped, one while it is being probed.
- A connection is opened when there are rows for it and every other one is busy; twice as many at a time as are
  open, so that a distant relay is reached in a few round trips and a near one is not flooded.
- One that is to go takes nothing more, and says QUIT once nothing is in flight on it.
- What fails (to connect, to log in, or a connection that dies before its first answer) is the relay's fault and is
  told in the arena; openings back off; no recipient is charged for it.
- One watchdog for all deadlines, once a second.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from actors.sender import descriptors
from actors.sender.backoff import backoff_s
from actors.sender.connection import Connection
from actors.sender.lanes import Lanes
from actors.sender.learnt import CloseCount, ModeMemory, Patience
from actors.sender.steering import Steering
from actors.smtp.outcome import Connection as Action
from actors.smtp.outcome import Outcome
from actors.smtp.rules import About
from actors.smtp.session import SessionError, deadline_s, open_session
from actors.smtp.transaction import Concluded, Event, Mode, Stage
from broker.contract.endpoint import Endpoint
from shm.live import relays as table
from shm.live.relays import RelayState, RelayTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from actors.sender.walk import Walk

__all__ = ["Pool"]

OPENING_MAX: Final = 64  # at a time: a session costs the loop about 1 ms, and nobody else may wait for that
BLAMED_SHARE: Final = 0.05  # of conclusions within a second: replies that blame us slow the pool
UNNEEDED_NS: Final = 1_000_000_000  # without work: how soon behind one that the relay closed another is opened
WATCH_NS: Final = 1_000_000_000
SECOND_NS: Final = 1_000_000_000
_TIMEOUTS: Final = frozenset({Event.TIMEOUT_BEFORE, Event.TIMEOUT_AFTER})
_OURS: Final = ("connections", "messages_per_connection", "window", "max_age_s", "timeouts_s")  # not the session's
_OWN_WORDS: Final = tuple(range(table.TOGETHER + 1))


class Pool:
    """The connections to one relay.

    index   the relay's place in the settings and in the arena's table
    lanes   leases that have something to send through it, in the order of their turns
    free    connections with nothing in flight, the one used last on top
    window  most messages in flight on one connection now
    patience  how many refused recipients the relay bears on a connection
    done    messages concluded ever; latency_ns: of the oldest message of the last batch.  Both are the walk's to set
    """

    def __init__(
        self,
        index: int,
        relay: Endpoint,
        row: int,
        relay_table: RelayTable,
        walk: Walk,
        fault: Callable[[str], None],
        sockets: descriptors.Descriptors = descriptors.PROCESS,
    ) -> None:
        self.index = index
        self.relay = relay
        self.lanes = Lanes()
        self.free: list[Connection] = []
        self.connections: set[Connection] = set()
        self.window = 1
        self.done = self.latency_ns = 0
        self._walk = walk
        self._row = row
        self._table = relay_table
        self._words = relay_table.words(row, index)
        for word in _OWN_WORDS:
            self._words[word] = 0
        self._fault = fault
        self._sockets = sockets
        self._steering = Steering(row, index, relay_table)
        self._closes = CloseCount()
        self._modes = ModeMemory()
        self.patience = Patience()
        self._opening: set[asyncio.Task[Connection | None]] = set()
        self._failed = 0  # in a row
        self._not_before_ns = self._unneeded_until_ns = 0
        self._troubled = 0  # conclusions that were not plain acceptance
        self._timed_out = False
        self._judged_from = (0, 0, 0)  # time, conclusions and blame when the share of blame was last begun to count
        self._throttled = 0
        self._bdat_from: int | None = None  # messages accepted when the first BDAT connection stood; None = no BDAT
        self._watched_ns = 0
        self._closed = False

    @property
    def hopeful(self) -> bool:
        """Whether rows claimed for this relay have a way to go: an open connection, or one about to open."""
        return self._limit() > 0 and (bool(self.connections) or not self._failed)

    @property
    def connected(self) -> bool:
        """Whether a connection is open."""
        return bool(self.connections)

    def become(self, relay: Endpoint) -> None:
        """New settings: connections that would be opened otherwise now take nothing more."""
        same = replace(relay, **{name: getattr(self.relay, name) for name in _OURS}) == self.relay
        self.relay = relay
        if not same:
            self._modes, self._closes, self.patience = ModeMemory(), CloseCount(), Patience()
            self._bdat_from = None
            self._steering.restart()
            self._retire(list(self.connections))

    def _limit(self) -> int:
        """Most connections the broker allows now."""
        if self._closed:
            return 0
        state = self._table.state(self._row, self.index)
        if state == RelayState.TRIPPED:
            return 0
        allowance = self._table.allowance(self._row, self.index)
        return min(allowance, 1) if state == RelayState.PROBING else allowance

    # Opening.

    def grow(self, now_ns: int, *, wanted: bool) -> None:
        """Open connections if there is need: the first when anybody wants one, more when rows wait for all of them."""
        have = len(self.connections)
        crowded = bool(self.lanes) and not self.free
        if not crowded and (have or not wanted):
            return
        if now_ns < self._not_before_ns or (not crowded and now_ns < self._unneeded_until_ns):
            return
        opening = len(self._opening)
        together = min(max(have, 1), OPENING_MAX) if crowded else 1
        count = min(together - opening, min(self._limit(), self._steering.target) - have - opening)
        if count > 0:
            for _ in range(min(count, self._sockets.room())):
                self._sockets.take()
                task = asyncio.get_running_loop().create_task(self._open())
                self._opening.add(task)
                task.add_done_callback(self._opened)
            self._words[table.OPENING] = len(self._opening)

    def _opened(self, task: asyncio.Task[Connection | None]) -> None:
        """An attempt is over: put its connection to work, and see whether more are needed."""
        self._opening.discard(task)
        self._words[table.OPENING] = len(self._opening)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:  # of no kind that is known: still only this relay's, and to be rested from
            self._words[table.FAILURES] += 1
            self._fail(f"{type(error).__name__}: {error}")
        elif (connection := task.result()) is not None:
            self._walk.refill(connection, b"")
        if not self._closed:
            self.grow(time.monotonic_ns(), wanted=False)

    async def _open(self) -> Connection | None:
        """One session and the connection that takes it over; None if it did not come about."""
        stands = False
        try:
            session = await open_session(self.relay, ceiling=self._mode_ceiling())
            if self._closed:
                session.close()
                return None
            connection = Connection(self._walk, self, session, self._messages_max())
            session.take_over(connection)
            stands = True
        except SessionError as error:
            refused = error.reply is not None and error.reply.code < 500
            self._words[table.REFUSALS if refused else table.FAILURES] += 1
            self._fail(str(error))
            return None
        finally:
            if not stands:
                self._sockets.give_back()
        self._failed = 0
        surplus = len(self.connections) >= self._limit() or session.mode > self._mode_ceiling()
        self.connections.add(connection)
        if session.mode is Mode.BDAT and self._bdat_from is None:
            self._bdat_from = self.done - self._troubled
        self._tell(session.mode)
        if surplus:
            connection.left = 0
        return connection

    def _mode_ceiling(self) -> Mode:
        """The best mode to speak: what the broker allows, and the relay did not break lately."""
        ceiling = self._modes.ceiling(time.monotonic_ns())
        allowed = self._table.mode_ceiling(self._row, self.index) or Mode.BDAT
        return Mode(min(ceiling, allowed))

    def _messages_max(self) -> int:
        """Messages that a new connection may carry; 0 = no limit."""
        learnt = self._table.close_count_learnt(self._row, self.index)
        limits = (self.relay.messages_per_connection, self._closes.now(time.monotonic_ns()), learnt)
        return min((limit for limit in limits if limit), default=0)

    def _tell(self, mode: int = 0) -> None:
        self._words[table.CONNECTIONS] = len(self.connections)
        if mode:
            self._words[table.MODE] = mode
        self._words[table.SINCE_NS] = time.monotonic_ns()

    def _fail(self, reason: str) -> None:
        now_ns = time.monotonic_ns()
        if not self.connections:
            self._steering.restart()
        if now_ns < self._not_before_ns:
            return  # of several attempts that fail together only one counts
        self._failed += 1
        self._not_before_ns = now_ns + int(backoff_s(self._failed, random.random()) * SECOND_NS)
        self._fault(f"relay `{self.relay.name}` ({self.relay.host}:{self.relay.port}): {reason}")

    # Use.

    def rest(self, connection: Connection) -> None:
        """A connection has nothing to do: it waits for work, or leaves if it has carried all it may."""
        if connection.dismissed:
            return  # it has said goodbye, and waits for the answer
        if connection.left <= 0 or self._closed:
            connection.leave()
            return
        connection.waiting = True
        self.free.append(connection)

    def heard(self, outcome: Outcome, concluded: Concluded) -> None:
        """A verdict that was not plain acceptance: what it says of the relay."""
        self._troubled += 1
        if outcome.action is Action.STEP_DOWN:
            self._step_down()
        if concluded.event is Event.CLOSING:
            self._words[table.REFUSALS] += 1
        elif concluded.event in _TIMEOUTS:
            self._timed_out = True
        if outcome.blame is About.SENDER and concluded.reply is not None:
            self._words[table.BLAMED] += 1
            self._fault(f"relay `{self.relay.name}` blames the sender: {concluded.reply}")
        elif outcome.blame is About.THROTTLING:
            self._words[table.THROTTLED] += 1

    def _step_down(self) -> None:
        """One of our connections lost step: no more of its mode for a while, and let those go that still speak it."""
        now_ns = time.monotonic_ns()
        spoken = max((connection.transactions.mode for connection in self.connections), default=Mode.LOCKSTEP)
        if not self._modes.misbehaved(spoken, now_ns):
            return
        ceiling = self._modes.ceiling(now_ns)
        self._words[table.STEPPED] = ceiling
        self._fault(f"relay `{self.relay.name}` lost step: {ceiling.name.lower()} for a while")
        self._bdat_from = None
        for connection in [c for c in self.connections if c.transactions.mode > ceiling]:
            connection.left = 0  # those at rest are dismissed with the next tick: we may be in the middle of its walk

    def lost(self, connection: Connection, reason: str) -> None:
        """A connection is gone."""
        idle = connection.waiting
        self.connections.discard(connection)
        self._sockets.give_back()
        if idle:
            connection.waiting = False
            self.free.remove(connection)
        self._tell()
        now_ns = time.monotonic_ns()
        if connection.closed_after and connection.refused_last:
            self.patience.hung_up(connection.refused, now_ns)
        elif connection.closed_after and not idle:
            self._closes.closed(connection.closed_after, now_ns)
            self._keep_to_close_count(now_ns)
        if self._closed:
            return
        if connection.made_no_progress and idle:  # it was not needed, and another would go the same way
            self._unneeded_until_ns = now_ns + UNNEEDED_NS
        elif connection.made_no_progress:
            self._words[table.FAILURES] += 1
            self._fail(f"the connection died before its first answer: {reason or 'closed by the relay'}")
        self.grow(now_ns, wanted=False)

    def _keep_to_close_count(self, now_ns: int) -> None:
        """No connection is to have more in flight than the relay will take of it."""
        self._words[table.CLOSE_COUNT] = self._closes.habit(now_ns)
        if count := self._closes.now(now_ns):
            for connection in self.connections:
                spare = count - connection.replied - len(connection.flights)
                connection.left = min(connection.left, max(spare, 0))

    # Time.

    def tick(self, now_ns: int, *, wanted: bool) -> None:
        """See where the relay stands, grow or shrink, and once a second look at deadlines and idle connections."""
        self._account(now_ns)
        crowded = bool(self.lanes) and not self.free
        self._steering.look(
            now_ns / SECOND_NS,
            crowded=crowded,
            done=self.done,
            latency_s=self.latency_ns / SECOND_NS,
            ceiling=self._window_ceiling(),
        )
        self.window = self._words[table.WINDOW] = min(self._steering.window, self._window_ceiling())
        self._shrink()
        self.grow(now_ns, wanted=wanted)
        if now_ns - self._watched_ns >= WATCH_NS:
            self._watched_ns = now_ns
            self._watch(now_ns)

    def _account(self, now_ns: int) -> None:
        """Tell the broker what was accepted; slow down if too much of what came blames us."""
        words = self._words
        words[table.ACCEPTED] = self.done - self._troubled
        blamed, throttled = words[table.BLAMED], words[table.THROTTLED]
        since_ns, done, blamed_before = self._judged_from
        fresh = blamed - blamed_before
        slow = throttled > self._throttled or self._timed_out or (fresh and fresh >= BLAMED_SHARE * (self.done - done))
        if slow:
            words[table.SLOWED] += 1
            self._timed_out = False
            self._throttled = throttled
        if slow or now_ns - since_ns > SECOND_NS:
            self._judged_from = (now_ns, self.done, blamed)

    def _window_ceiling(self) -> int:
        """Largest window allowed: 1 until BDAT has worked here once, and while the relay is being probed."""
        accepted = self.done - self._troubled
        if self._bdat_from is None or accepted <= self._bdat_from:
            return 1
        if self._table.state(self._row, self.index) == RelayState.PROBING:
            return 1
        ceiling = self._table.window_ceiling(self._row, self.index) or self.relay.window
        return max(min(ceiling, self.relay.window), 1)

    def _shrink(self) -> None:
        """Let go of more connections than should be, and of those that may take nothing more."""
        for connection in [c for c in self.free if c.left <= 0]:
            self._dismiss(connection)
        most = min(self._limit(), self._steering.target)
        if len(self.connections) <= most:
            return
        staying = [connection for connection in self.connections if connection.left > 0]
        staying.sort(key=lambda c: (not c.waiting, c.opened_ns))
        self._retire(staying[: max(len(staying) - most, 0)])

    def _retire(self, connections: Iterable[Connection]) -> None:
        """They take nothing more, and leave when nothing is in flight on them."""
        for connection in connections:
            connection.left = 0
            if connection.waiting:
                self._dismiss(connection)

    def _watch(self, now_ns: int) -> None:
        limits = {stage: int(deadline_s(self.relay, stage) * SECOND_NS) for stage in Stage}
        for connection in [c for c in self.connections if c.overdue(now_ns, limits)]:
            connection.break_off("timeout")
        idle_ns = limits[Stage.IDLE]
        for connection in [c for c in self.free if now_ns - c.used_ns > idle_ns]:
            self._dismiss(connection)
        if self.relay.max_age_s:
            born_ns = now_ns - int(self.relay.max_age_s * SECOND_NS)
            self._retire([c for c in self.connections if c.opened_ns < born_ns and c.left > 0])
        self._words[table.CLOSE_COUNT] = self._closes.habit(now_ns)
        self._words[table.STEPPED] = self._modes.stepped(now_ns) or 0

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
