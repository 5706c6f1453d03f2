"""How many connections and how large a window a pool should have now: the controllers, fed from the arena.

All senders of an engine share a relay, so one of them leads: of those whose rows wait for connections, the one with the
lowest row measures what all of them get through and finds the best number for all together (`growth`). Each takes an
equal part of it, at least one connection. When the leader has no more need the next one goes on from where it stood.

- Once every 20 ms at most; nothing here runs per message.
- What is counted of a relay's refusals is the sum over the senders, so that whoever meets them first warns all.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import numpy as np

from actors.sender.growth import Growth
from actors.sender.throughput import Sight
from actors.sender.window import Window
from shm.live import relays as table

if TYPE_CHECKING:
    from shm.live.relays import RelayTable

__all__ = ["Steering"]

LOOK_S: Final = 0.02
NEED_S: Final = 2.0  # how long after rows last waited for connections a sender still counts as one that needs them
SMOOTH: Final = 0.3  # share of the newest latency in the average
_COUNTS: Final = [table.DONE, table.REFUSALS, table.FAILURES, table.SLOWED]


class Steering:
    """For one pool.

    target     connections it should have: its part of what is best for all senders
    window     messages in flight a connection
    latency_s  of late, MAIL to final reply; 0 = not known
    """

    def __init__(self, row: int, relay: int, relay_table: RelayTable, dice: random.Random | None = None) -> None:
        self._row = row
        self._actor, self._broker = relay_table.halves(relay)
        self._words = relay_table.words(row, relay)
        self._growth = Growth(dice or random.Random())
        self._window = Window()
        self._together = 1
        self._looked_s = self._crowded_s = -1.0
        self._done = 0
        self._leads = False
        self._rows: tuple[int, ...] = ()
        self._offset = [0, 0, 0]  # so that sums over changing members only ever grow
        self._sums = [0, 0, 0]
        self.target = self.window = 1
        self.latency_s = 0.0

    def restart(self) -> None:
        """Every connection is gone because the relay is: from one connection again."""
        self._growth.restart()
        self._window.restart()
        self._together = self.target = self.window = 1

    def look(self, now_s: float, *, crowded: bool, done: int, latency_s: float, ceiling: int) -> None:
        """See how things are and decide.

        crowded    rows wait and no connection is free
        done       messages concluded by this pool ever
        latency_s  of the batch concluded last
        ceiling    largest window allowed
        """
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        words = self._words
        if done != self._done:
            self._done = words[table.DONE] = done
            self.latency_s += (latency_s - self.latency_s) * (SMOOTH if self.latency_s else 1.0)
            words[table.LATENCY_US] = int(self.latency_s * 1e6)
        if crowded:
            self._crowded_s = now_s
        needy = now_s - self._crowded_s < NEED_S and self._crowded_s >= 0
        if not needy:
            words[table.TOGETHER] = 0
            self._leads = False
            return
        words[table.TOGETHER] = self._together
        self._share(now_s, crowded, ceiling)

    def _share(self, now_s: float, crowded: bool, ceiling: int) -> None:
        """Lead, or follow who leads, and take our part."""
        together = self._actor[:, table.TOGETHER].copy()  # once: the others write it while we look
        together[self._row] = self._together
        rows = tuple(np.flatnonzero(together > 0).tolist())
        sight = self._sight(now_s, crowded, rows)
        own = sight._replace(
            open=self._words[table.CONNECTIONS],
            done=self._done,
            refused=self._words[table.REFUSALS],
            slowed=self._words[table.SLOWED],
        )
        self.window = self._window.step(own, ceiling)
        if rows[0] == self._row:
            if not self._leads:
                others = together[list(rows[1:])]
                self._growth.adopt(int(others.max()) if len(others) else self._together)
            self._leads = True
            # Each member has one connection at least: fewer can be asked for, and would be judged, but do not come.
            self._growth.target = max(self._growth.target, min(len(rows), sight.allowance))
            if not self._window.moving:
                self._growth.step(sight)
            self._together = max(self._growth.target, 1)
        else:
            self._leads = False
            self._together = int(together[rows[0]])
        self._words[table.TOGETHER] = self._together
        each, more = divmod(self._together, len(rows))
        self.target = max(each + (rows.index(self._row) < more), 1)

    def _sight(self, now_s: float, crowded: bool, rows: tuple[int, ...]) -> Sight:
        """What all members see together; its counts go on growing when members come and go."""
        mine = self._actor[list(rows)]
        sums = [int(n) for n in mine[:, _COUNTS].sum(axis=0)]
        sums = [sums[0], sums[1] + sums[2], sums[3]]
        if rows != self._rows:
            self._rows = rows
            self._offset = [o + was - now for o, was, now in zip(self._offset, self._sums, sums, strict=True)]
            self._growth.disturbed()
        self._sums = sums
        done, refused, slowed = (o + n for o, n in zip(self._offset, sums, strict=True))
        return Sight(
            now_s=now_s,
            open=int(mine[:, table.CONNECTIONS].sum()),
            done=done,
            latency_s=self.latency_s,
            crowded=crowded,
            refused=refused,
            slowed=slowed,
            allowance=int(self._broker[list(rows), table.ALLOWANCE].sum()),
            window=self.window,
            least=len(rows),
        )
