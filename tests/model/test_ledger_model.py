"""A model of one shard's life: any order of claims, sends, replies, crashes and power losses, on a real ledger file.

The ledger runs beside a plain Python model of its rows. What the disk holds is simulated as SQLite does: the image of
the last sync is kept, pages are written back at random, and a power loss leaves each 4 KiB page old or new.

What must hold, whatever happens:

- every row changes along TRANSITIONS, by the writer that the table names;
- every recipient is in exactly one state, and a summary that says it is true equals a recount;
- after a crash each row is what recovery makes of some state it really had since the last sync;
- a message that may have been accepted is known as such: SENT, UNCERTAIN, or sticky and so never unmarked;
- nobody is sent more than two messages that may both have been accepted (one under `hold`), `retry` aside.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shm.files.ledger import TRANSITIONS, Ledger, States, Writer, unpack_a
from shm.files.ledger_idle import suppress_idle
from shm.files.ledger_states import AGAIN

INSTANCE = "ab" * 16
BOOT = "3f0c9a52-6a5b-4a3e-9d6e-0c4f6f1f2a3b"
PAGE = 4096
ROWS = 600  # three pages of rows
TRACKED = (0, 1, 255, 256, 257, 511, 512, 599)  # the audience, on every page; the others are duplicates
GIVE_UP_S = 900

P, C, S, D = States.PENDING, States.CLAIMED, States.SENDING, States.DEFERRED
F, U = States.FAILED, States.UNCERTAIN
rows_of_audience = st.lists(st.sampled_from(TRACKED), unique=True, min_size=1)


@dataclass(frozen=True)
class Model:
    """One row as the design describes it; `time` is the first attempt until the row concludes, then the conclusion."""

    state: States = P
    attempts: int = 0
    sticky: bool = False
    next: int = 0
    time: int = 0
    again: bool = False  # attempted after an attempt that may have been accepted

    def released(self) -> Model:
        return replace(self, state=D if self.attempts or self.sticky else P)

    def concluded(self, state: States, now: int) -> Model:
        return replace(self, state=state, next=0, time=now)

    def silenced(self, state: States, now: int) -> Model:
        """Suppressed or cancelled; of a sticky row it stays unknown whether it has the message."""
        return self.concluded(U if self.sticky else state, now)

    def lost(self, policy: str, now: int) -> Model:
        if policy == "hold" or self.sticky:
            return replace(self.concluded(U, now), again=self.sticky)
        return replace(self, state=D, sticky=True, next=now)

    def recovered(self, *, power_lost: bool, policy: str, now: int) -> Model:
        if self.state is S or (self.state is C and power_lost):
            return self.lost(policy, now)
        return self.released() if self.state is C else self


class PowerLost(Exception):
    """Raised where a sync would have begun, in place of it."""


class DiskLedger(Ledger):
    """A ledger whose disk is the test's: a sync is an image kept, and can be where the power goes."""

    __slots__ = ("fail_after", "on_sync")

    on_sync: Callable[[bytes], None]
    fail_after: int

    def sync(self) -> None:
        self.fail_after -= 1
        if self.fail_after == 0:
            raise PowerLost
        self.on_sync(self.image())


def read_row(ledger: Ledger, row: int) -> Model:
    a, b = unpack_a(ledger.a[row]), ledger.b[row]
    return Model(a.state, a.attempts, a.sticky, b & 0xFFFF_FFFF, b >> 32, bool(ledger.a[row] & AGAIN))


def allowed(before: Model, after: Model, writer: Writer) -> bool:
    """Whether a row may go from one to the other: one way of the table, or through UNCERTAIN in one store."""
    if (before.state, after.state, writer) in TRANSITIONS:
        return before.state is not U or after.sticky
    through = (before.state, U, writer) in TRANSITIONS and (U, after.state, writer) in TRANSITIONS
    return through and after.sticky and not before.sticky


class Shard(RuleBasedStateMachine):
    """One ledger, its holder, its broker and its disk."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="ledger-model-"))
        self.path = self.directory / "shard-000003.ledger"
        self.now = 1_700_000_000
        self.epoch = 0
        self.leased = False
        self.ready: set[int] = set()  # claimed when the last sync returned, and ever since
        self.model = dict.fromkeys(TRACKED, Model())
        self.history: dict[int, list[Model]] = {}
        self.maybe_accepted: set[int] = set()
        self.copies = dict.fromkeys(TRACKED, 0)  # messages that may have been accepted
        self.asked_again: set[int] = set()  # by the operator's retry: no bound is promised

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.directory)

    @initialize(policy=st.sampled_from(["resend", "hold"]))
    def create(self, policy: Any) -> None:
        self.policy = policy
        Ledger.create(self.path, instance=INSTANCE, campaign=7, shard=3, rows=ROWS)
        self.open()
        self.ledger.mark_duplicates(sorted(set(range(ROWS)) - set(TRACKED)))
        self.ledger.sync()

    def open(self) -> None:
        ledger = DiskLedger.open(self.path, instance=INSTANCE, campaign=7, shard=3, writable=True)
        assert isinstance(ledger, DiskLedger)
        self.ledger = ledger
        self.ledger.fail_after = 0
        self.ledger.on_sync = self.synced
        self.synced(self.ledger.image())

    def synced(self, image: bytes) -> None:
        self.disk = bytearray(image)
        self.history = {row: [self.model[row]] for row in TRACKED}
        self.ready |= {row for row in TRACKED if self.model[row].state is C}

    def become(self, writer: Writer, changes: dict[int, Model]) -> None:
        """Note in the model what the ledger was told, and hold every step against the table."""
        for row, after in changes.items():
            before = self.model[row]
            assert before == after or allowed(before, after, writer), (row, before, after, writer)
            self.model[row] = after
            self.history[row].append(after)
            if after.state is not C:
                self.ready.discard(row)

    def among(self, rows: Iterable[int], *states: States) -> list[int]:
        return [row for row in rows if self.model[row].state in states]

    def each(self, rows: Iterable[int], change: Callable[[Model], Model]) -> dict[int, Model]:
        return {row: change(self.model[row]) for row in rows}

    # Time, and what the machine does by itself.

    @rule(seconds=st.sampled_from([1, 300, 600]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(page=st.integers(0, 3))
    def write_back(self, page: int) -> None:
        """The kernel writes a dirty page when it likes."""
        self.disk[page * PAGE : (page + 1) * PAGE] = self.ledger.image()[page * PAGE : (page + 1) * PAGE]

    # The holder.

    # A rule that needs a lease, a claim or a send first makes it itself, so that random walks get far.

    @rule()
    def lease(self) -> None:
        if self.leased:
            return
        self.epoch += 1
        self.ledger.open_lease(self.epoch, 2, BOOT)
        self.leased = True

    @rule(rows=rows_of_audience)
    def claim(self, rows: list[int]) -> None:
        self.lease()
        due = [row for row in self.ledger.due(self.now).tolist() if row in rows]
        self.ledger.claim(due)
        self.become(Writer.HOLDER, self.each(due, lambda row: replace(row, state=C)))

    @precondition(lambda self: self.leased)
    @rule()
    def sync(self) -> None:
        self.ledger.sync()

    @rule(rows=rows_of_audience)
    def send(self, rows: list[int]) -> None:
        if not self.ready.intersection(rows):
            self.claim(rows)
            self.ledger.sync()
        for row in sorted(self.ready.intersection(rows)):
            self.ledger.sending(row, self.now)
            before = self.model[row]
            counted = replace(before, attempts=before.attempts + 1, again=before.again or before.sticky)
            after = replace(counted, state=S, time=before.time or self.now)
            self.become(Writer.HOLDER, {row: after})
            self.maybe_accepted.add(row)
            self.copies[row] += 1

    @rule(rows=rows_of_audience, state=st.sampled_from([States.SENT, States.BOUNCED, D, F, States.CANCELLED, U]))
    def reply(self, rows: list[int], state: States) -> None:
        """A reply, or a lost connection: all but SENT and UNCERTAIN mean that this message was not taken."""
        if not self.among(rows, S):
            self.send(rows)
        for row in self.among(rows, S):
            if state is U:
                self.lose(row)
                continue
            self.ledger.conclude(row, state, 250, (2, 0, 0), 1, self.now, self.now + 300)
            after = self.model[row].concluded(state, self.now)
            if state is D:
                after = replace(self.model[row], state=D, next=self.now + 300)
            self.become(Writer.HOLDER, {row: after})
            if state is not States.SENT:
                self.copies[row] -= 1
                if not self.copies[row]:
                    self.maybe_accepted.discard(row)

    def lose(self, row: int) -> None:
        after = self.model[row].lost(self.policy, self.now)
        if self.policy == "hold":
            self.ledger.conclude(row, U, 0, None, 1, self.now)
        else:
            assert self.ledger.resend(row, 0, None, 1, self.now) == (after.state is D)
        self.become(Writer.HOLDER, {row: after})

    @precondition(lambda self: self.leased)
    @rule(rows=rows_of_audience)
    def unclaim(self, rows: list[int]) -> None:
        claimed = self.among(rows, C)
        self.ledger.unclaim(claimed)
        self.become(Writer.HOLDER, self.each(claimed, Model.released))

    @precondition(lambda self: self.leased)
    @rule(rows=rows_of_audience, to=st.sampled_from([States.SUPPRESSED, States.CANCELLED]))
    def silence(self, rows: list[int], to: States) -> None:
        open_rows = self.among(rows[:2], P, C, D)
        change = self.ledger.suppress if to is States.SUPPRESSED else self.ledger.cancel
        change(open_rows, self.now)
        self.become(Writer.HOLDER, self.each(open_rows, lambda row: row.silenced(to, self.now)))

    @precondition(lambda self: self.leased)
    @rule()
    def expire(self) -> None:
        expired = self.ledger.expired(self.now, GIVE_UP_S).tolist()
        assert expired == [row for row in self.among(TRACKED, D) if 0 < self.model[row].time <= self.now - GIVE_UP_S]
        self.ledger.fail(expired, self.now)
        self.become(Writer.HOLDER, self.each(expired, lambda row: row.concluded(F, self.now)))

    @rule()
    def give_back(self) -> None:
        """Return the lease; what is in flight is lost with its connection first."""
        if not self.leased:
            return
        for row in self.among(TRACKED, S):
            self.lose(row)
        self.unclaim_all()
        self.ledger.sync()
        self.ledger.close_lease(self.epoch)
        self.ledger.sync()
        self.leased = False

    def unclaim_all(self) -> None:
        claimed = self.among(TRACKED, C)
        self.ledger.unclaim(claimed)
        self.become(Writer.HOLDER, self.each(claimed, Model.released))

    # The broker, while nobody holds a lease; the power may go at any of its syncs.

    @rule(
        change=st.sampled_from(["cancel", "retry", "retry_anew", "suppress", "give_up"]),
        fail_after=st.sampled_from([0, 0, 0, 1, 2, 3]),
        seed=st.integers(0, 1 << 32),
    )
    def idle(self, change: str, fail_after: int, seed: int) -> None:
        self.give_back()
        rows, run, effect = self.idle_change(change)
        self.ledger.fail_after = fail_after
        changed, before = None, dict(self.model)
        try:
            if fail_after:
                # what the disk may show is one state or the other, whichever sync the power goes at
                self.become(Writer.BROKER, self.each(rows, effect))
                changed = run()
            else:
                changed = run()
                self.become(Writer.BROKER, self.each(rows, effect))
        except PowerLost:
            self.history = {row: [*self.history[row], before[row]] for row in TRACKED}
            self.lose_power(seed)
            return
        finally:
            self.ledger.fail_after = 0
        assert getattr(changed, "total", changed) == len(rows)
        self.history = {row: [self.model[row]] for row in TRACKED}

    def idle_change(self, change: str) -> tuple[list[int], Callable[[], object], Callable[[Model], Model]]:
        now = self.now
        if change == "cancel":
            rows = self.among(TRACKED, P, D)
            return rows, lambda: self.ledger.cancel_idle(now), lambda row: row.silenced(States.CANCELLED, now)
        if change == "give_up":
            rows = [row for row in self.among(TRACKED, D) if 0 < self.model[row].time <= now - GIVE_UP_S]
            return rows, lambda: self.ledger.give_up(now, GIVE_UP_S), lambda row: row.concluded(F, now)
        if change == "suppress":
            rows = self.among(TRACKED[::2], P, D)
            named = np.array(TRACKED[::2])
            return (
                rows,
                lambda: suppress_idle(self.ledger, named, now),
                lambda row: row.silenced(States.SUPPRESSED, now),
            )
        # one that a crash cut short is done anew, for those whom it meant: who had concluded when it was decided
        until = now - 300 if change == "retry_anew" else None
        rows = [row for row in self.among(TRACKED, F, U) if until is None or self.model[row].time <= until]
        self.asked_again |= set(rows)
        return rows, lambda: self.ledger.retry({F, U}, now, until), self.retried

    def retried(self, row: Model) -> Model:
        return replace(row, state=D, sticky=row.sticky or row.state is U, next=self.now, time=0)

    # Death.

    @rule()
    def kill_the_process(self) -> None:
        """Memory outlives its writer: the mapping is as it was."""
        self.ledger.close()
        self.open()
        self.recover(power_lost=False)

    @rule(seed=st.integers(0, 1 << 32))
    def lose_power(self, seed: int) -> None:
        """Each page is the one of the last sync, one written back since, or the newest."""
        memory, disk, choose = self.ledger.image(), self.disk, random.Random(seed)
        pages = [choose.choice([memory, bytes(disk)])[at : at + PAGE] for at in range(0, len(memory), PAGE)]
        self.ledger.close()
        self.path.write_bytes(b"".join(pages))
        candidates = self.history
        self.open()
        for row in TRACKED:
            found = read_row(self.ledger, row)
            assert found in candidates[row], f"row {row} is {found}, which it never was since the sync"
            self.model[row] = found
        self.recover(power_lost=True)

    def recover(self, *, power_lost: bool) -> None:
        self.history = {row: [self.model[row]] for row in TRACKED}
        self.ledger.recover(power_lost, self.policy, self.now)
        after = self.each(TRACKED, lambda row: row.recovered(power_lost=power_lost, policy=self.policy, now=self.now))
        self.become(Writer.BROKER, after)
        self.history = {row: [self.model[row]] for row in TRACKED}
        self.leased = False
        self.ready.clear()
        self.epoch = self.ledger.open_epoch
        assert self.ledger.count().in_flight == 0

    # What must hold after every step.

    @invariant()
    def ledger_and_model_agree(self) -> None:
        assert {row: read_row(self.ledger, row) for row in TRACKED} == self.model

    @invariant()
    def everybody_is_accounted_for(self) -> None:
        counts = self.ledger.count()
        expected = [0] * len(States)
        for row in self.model.values():
            expected[row.state] += 1
        expected[States.DUPLICATE] = ROWS - len(TRACKED)
        assert counts.by_state == tuple(expected)
        assert counts.audience == len(TRACKED)
        assert counts.attempts == sum(row.attempts for row in self.model.values())
        assert counts.resent == sum(row.again for row in self.model.values())
        assert counts.next_attempt_s == min((row.next for row in self.model.values() if row.state is D), default=0)
        assert self.ledger.summary() in {None, counts}

    @invariant()
    def due_rows_are_those_of_the_model(self) -> None:
        due = [r for r, row in self.model.items() if row.state is P or (row.state is D and row.next <= self.now)]
        assert np.array_equal(self.ledger.due(self.now), due)

    @invariant()
    def what_may_have_been_accepted_is_marked(self) -> None:
        for row in self.maybe_accepted:
            state, sticky = self.model[row].state, self.model[row].sticky
            assert sticky or state in {S, States.SENT, U}, f"row {row} may have its message and is {self.model[row]}"

    @invariant()
    def nobody_gets_more_than_policy_allows(self) -> None:
        most = 2 if self.policy == "resend" else 1
        assert all(copies <= most for row, copies in self.copies.items() if row not in self.asked_again)


TestShard = Shard.TestCase
TestShard.settings = settings(max_examples=200, stateful_step_count=60, deadline=None, print_blob=True)
