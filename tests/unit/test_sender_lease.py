"""Rows of a held shard: due, claimed, durable, given back (actors/sender/lease.py, record.py), on real files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from actors.message.compose import Composer
from actors.sender import record
from actors.sender.lease import CLAIMED_MAX, CLAIMED_MIN, CLAIMED_MIN_GATED, Lease, Offer, next_target
from actors.sender.pace import Gap, Pace
from actors.sender.retry import RetryPolicy
from actors.smtp.reply import Reply
from actors.smtp.transaction import Concluded, Event, Stage
from shm.address import key
from shm.files.bundle import Bundle
from shm.files.ledger import Ledger, States
from shm.files.replies import Replies
from shm.files.replies import read as read_replies
from shm.files.shard import Shard, ShardWriter
from shm.live import counters
from shm.live.leases import CANCEL, RETURN, RUN, pack_order
from shm.live.suppressed import ADD, ENTRY

INSTANCE = "00" * 16
NOW_S = 1_800_000_000
POLICY = RetryPolicy(first_s=300, max_s=14400, give_up_s=86400, classes={}, jitter=0)

MakeLease = Callable[..., Lease]


@pytest.fixture
def make_lease(tmp_path: Path) -> Iterator[MakeLease]:
    """A factory: make_lease(100) is a lease of a shard with 100 rows and a new ledger."""
    made: list[Lease] = []

    def make(rows: int, *, resend: bool = True, rows_max: int = 0) -> Lease:
        names = {"instance": INSTANCE, "campaign": 7, "shard": 1}
        writer = ShardWriter(tmp_path / "shard", **names)
        for row in range(rows):
            writer.add(key(f"user{row}@example.com"), b"\x80")
        writer.finish()
        Ledger.create(tmp_path / "ledger", rows=rows, **names)
        shard = Shard.open(tmp_path / "shard", **names)
        lease = Lease(
            offer=Offer(0, 1, 7, 1, 1, 0),
            bundle=cast("Bundle", None),
            composer=cast("Composer", None),
            shard=shard,
            ledger=Ledger.open(tmp_path / "ledger", writable=True, **names),
            replies=Replies(tmp_path / "replies"),
            policy=POLICY,
            places={0: 0},
            resend=resend,
            suppressed_seen=0,
            keys=shard.keys.tobytes(),
            words=memoryview(bytearray(16 * 8)).cast("q"),
            grant_words=memoryview(bytearray(16 * 8)).cast("q"),
            pace=Pace(Gap()),
        )
        lease.obey(pack_order(RUN, gated=False, rows_max=rows_max))
        made.append(lease)
        return lease

    yield make
    for lease in made:
        lease.ledger.close()
        lease.shard.close()
        lease.replies.close()


def durable(lease: Lease) -> list[int]:
    """Claim, sync, and take what is ready."""
    lease.claim(NOW_S)
    lease.begin_sync()
    lease.durable()
    rows = list(lease.ready)
    lease.ready.clear()
    return rows


def send(lease: Lease, row: int) -> None:
    lease.ledger.sending(row, NOW_S)
    lease.in_flight += 1


def conclude(lease: Lease, row: int, stage: Stage, event: Event, reply: Reply | None = None, now_s: int = NOW_S) -> Any:
    lease.in_flight -= 1
    return record.troubled(lease, row, Concluded(1, stage, reply, event), 0, now_s)


def state(lease: Lease, row: int) -> States:
    return States(lease.ledger.a[row] & 15)


def test_the_target_follows_two_intervals_within_bounds() -> None:
    """Twice what an interval used, doubled when it starved, let down gently, never beyond the bounds."""
    assert next_target(128, 400, starved=False, gated=False) == 800
    assert next_target(400, 100, starved=True, gated=False) == 800
    assert next_target(400, 10, starved=False, gated=False) == 300
    assert next_target(CLAIMED_MIN, 0, starved=False, gated=False) == CLAIMED_MIN
    assert next_target(0, 0, starved=False, gated=True) == CLAIMED_MIN_GATED
    assert next_target(CLAIMED_MAX, 10**6, starved=True, gated=False) == CLAIMED_MAX


def test_a_row_is_ready_only_after_a_sync_that_began_after_its_claim(make_lease: MakeLease) -> None:
    """Claims made while a sync is under way wait for the next one."""
    lease = make_lease(1000)
    lease.claim(NOW_S)
    first = list(lease.claiming)
    assert first
    assert not lease.ready
    lease.begin_sync()
    lease.starved = True
    lease.claim(NOW_S)
    second = list(lease.claiming)
    lease.durable()
    assert list(lease.ready) == first
    lease.begin_sync()
    lease.durable()
    assert list(lease.ready) == [*first, *second]


def test_every_row_comes_once_in_shard_order(make_lease: MakeLease) -> None:
    """Claiming goes through the shard; no row is claimed twice."""
    lease = make_lease(1000)
    seen: list[int] = []
    while rows := durable(lease):
        for row in rows:
            send(lease, row)
            lease.in_flight -= 1
            record.sent(lease, row, Reply(250, (2, 0, 0), "Ok"), 0, NOW_S)
        seen += rows
    assert seen == list(range(1000))
    assert lease.exhausted(NOW_S)
    assert lease.words[counters.SENT] == 1000


def test_retries_have_their_share_of_a_claim_while_fresh_rows_remain(make_lease: MakeLease) -> None:
    """A quarter of the rows claimed at most, and none of them is passed over; alone they have it all."""
    lease = make_lease(1000)
    lease.ledger.claim(range(400))
    for row in range(400):
        lease.ledger.sending(row, NOW_S - 600)
        lease.ledger.conclude(row, States.DEFERRED, 450, None, 0, NOW_S - 600, NOW_S - 1)
    retries: list[int] = []
    fresh: list[int] = []
    while rows := durable(lease):
        again = [row for row in rows if row < 400]
        if len(fresh) + len(rows) - len(again) < 600:
            assert len(again) <= len(rows) / 4
        retries += again
        fresh += [row for row in rows if row >= 400]
        for row in rows:
            send(lease, row)
            lease.in_flight -= 1
            record.sent(lease, row, Reply(250, None, "Ok"), 0, NOW_S)
    assert (retries, fresh) == (list(range(400)), list(range(400, 1000)))


def test_a_retry_that_comes_due_while_fresh_rows_remain_is_not_left_behind(make_lease: MakeLease) -> None:
    """The shard is looked at again when its time has come, not when the fresh rows have been used up."""
    lease = make_lease(1000)
    row, *_ = durable(lease)
    send(lease, row)
    conclude(lease, row, Stage.RCPT, Event.TRANSIENT, Reply(450, None, "later"))
    later_s = NOW_S + 400
    seen = []
    for _ in range(3):
        lease.target = 0
        lease.claim(later_s)
        lease.begin_sync()
        lease.durable()
        seen += lease.ready
        lease.ready.clear()
    assert row in seen
    assert lease.left


def test_rows_max_bounds_what_is_claimed_and_in_flight(make_lease: MakeLease) -> None:
    """A suspect shard: one row at a time."""
    lease = make_lease(10, rows_max=1)
    assert durable(lease) == [0]
    send(lease, 0)
    assert durable(lease) == []
    lease.in_flight -= 1
    assert durable(lease) == [1]


def test_unclaimed_rows_are_what_they_were(make_lease: MakeLease) -> None:
    """PENDING if never attempted, DEFERRED otherwise; rows in flight stay."""
    lease = make_lease(3)
    for row in durable(lease)[:2]:
        send(lease, row)
    conclude(lease, 0, Stage.RCPT, Event.LOST_BEFORE)
    assert state(lease, 0) is States.DEFERRED
    assert durable(lease) == [0]
    lease.unclaim()
    assert [state(lease, row) for row in range(3)] == [States.DEFERRED, States.SENDING, States.PENDING]
    assert lease.claimed == 0


def test_a_lease_is_not_done_while_rows_are_due_or_soon_due(make_lease: MakeLease) -> None:
    """A retry within two seconds is waited for, a later one is not; a lease without connections is not done."""
    lease = make_lease(1)
    assert not lease.exhausted(NOW_S)
    (row,) = durable(lease)
    send(lease, row)
    assert not lease.exhausted(NOW_S)
    conclude(lease, row, Stage.RCPT, Event.TRANSIENT, Reply(450, None, "later"))
    assert lease.exhausted(NOW_S)
    assert not lease.exhausted(NOW_S + 299)


def test_a_refusal_is_recorded_with_its_text(make_lease: MakeLease) -> None:
    """Code, enhanced status, attempts in the ledger; the words beside it."""
    lease = make_lease(1)
    (row,) = durable(lease)
    send(lease, row)
    conclude(lease, row, Stage.RCPT, Event.PERMANENT, Reply(550, (5, 1, 1), "User unknown"))
    assert state(lease, row) is States.BOUNCED
    assert lease.words[counters.BOUNCED] == 1
    assert read_replies(lease.replies.path) == {0: [(1, "550 5.1.1 User unknown")]}


def test_a_deferral_beyond_the_give_up_time_fails(make_lease: MakeLease) -> None:
    """give_up_s after the first attempt there is no further one."""
    lease = make_lease(1)
    (row,) = durable(lease)
    send(lease, row)
    conclude(lease, row, Stage.RCPT, Event.TRANSIENT, Reply(450, None, "later"), NOW_S + POLICY.give_up_s)
    assert state(lease, row) is States.FAILED


def test_a_row_that_comes_due_after_its_give_up_time_is_failed_without_an_attempt(make_lease: MakeLease) -> None:
    """The campaign was paused meanwhile."""
    lease = make_lease(1)
    (row,) = durable(lease)
    send(lease, row)
    conclude(lease, row, Stage.RCPT, Event.TRANSIENT, Reply(450, None, "later"))
    lease.claim(NOW_S + POLICY.give_up_s)
    assert state(lease, row) is States.FAILED
    assert lease.claimed == 0


def test_overdue_rows_are_given_up_while_nothing_can_be_claimed(make_lease: MakeLease) -> None:
    """No relay, no grants: DEFERRED rows and retries that are claimed fail all the same; fresh rows stay."""
    lease = make_lease(3)
    for row in durable(lease)[:2]:
        send(lease, row)
        conclude(lease, row, Stage.RCPT, Event.TRANSIENT, Reply(450, None, "later"))
    lease.unclaim()
    lease.rows_max = 1
    lease.earned = 1
    lease.claim(NOW_S + POLICY.give_up_s - 1)
    lease.begin_sync()
    lease.durable()
    assert [state(lease, row) for row in range(3)] == [States.CLAIMED, States.DEFERRED, States.PENDING]
    lease.give_up(NOW_S + POLICY.give_up_s)
    assert [state(lease, row) for row in range(3)] == [States.FAILED, States.FAILED, States.PENDING]
    assert not lease.ready
    assert lease.words[counters.FAILED] == 2


def test_who_stood_behind_a_lost_message_is_tried_again_at_once_however_often(make_lease: MakeLease) -> None:
    """Each time somebody else got an answer, so it is no loop; who stood in front waits from the third time on."""
    lease = make_lease(2)
    first, second = durable(lease)
    lost = Concluded(1, Stage.MAIL, None, Event.LOST_BEFORE)
    for attempt in range(1, 6):
        for row, behind in ((first, False), (second, True)):
            if state(lease, row) is not States.CLAIMED:
                lease.ledger.claim([row])
            send(lease, row)
            lease.in_flight -= 1
            record.troubled(lease, row, lost, 0, NOW_S, behind=behind)
        assert lease.ledger.b[second] & 0xFFFF_FFFF == NOW_S
        assert (lease.ledger.b[first] & 0xFFFF_FFFF == NOW_S) is (attempt < 3)


def test_in_doubt_under_resend_means_one_more_copy_and_no_third(make_lease: MakeLease) -> None:
    """DEFERRED and sticky, due now; the second time UNCERTAIN, for good."""
    lease = make_lease(1)
    (row,) = durable(lease)
    send(lease, row)
    conclude(lease, row, Stage.BODY, Event.LOST_AFTER)
    assert (state(lease, row), lease.ledger.count().resent) == (States.DEFERRED, 0)
    assert durable(lease) == [row]
    send(lease, row)
    conclude(lease, row, Stage.BODY, Event.LOST_AFTER)
    assert state(lease, row) is States.UNCERTAIN
    assert lease.words[counters.UNCERTAIN] == 1


def test_in_doubt_under_hold_or_cancel_stays_uncertain(make_lease: MakeLease) -> None:
    """Nobody gets a second copy."""
    for lease in (make_lease(1, resend=False), make_lease(1)):
        (row,) = durable(lease)
        send(lease, row)
        if lease.resend:
            lease.obey(pack_order(CANCEL, gated=False))
        conclude(lease, row, Stage.BODY, Event.TIMEOUT_AFTER)
        assert state(lease, row) is States.UNCERTAIN


def test_under_a_cancel_what_would_be_deferred_is_cancelled(make_lease: MakeLease) -> None:
    """So are the rows not in flight; what is in flight may still be sent."""
    lease = make_lease(4)
    for row in durable(lease)[:2]:
        send(lease, row)
    lease.obey(pack_order(CANCEL, gated=False))
    lease.unclaim()
    lease.cancel(NOW_S)
    conclude(lease, 0, Stage.RCPT, Event.TRANSIENT, Reply(450, None, "later"))
    lease.in_flight -= 1
    record.sent(lease, 1, Reply(250, None, "Ok"), 0, NOW_S)
    assert [state(lease, row) for row in range(4)] == [
        States.CANCELLED, States.SENT, States.CANCELLED, States.CANCELLED,
    ]  # fmt: skip
    assert lease.words[counters.CANCELLED] == 3
    assert lease.exhausted(NOW_S)


def test_whoever_is_suppressed_leaves_the_queue_and_is_not_tried_again(make_lease: MakeLease) -> None:
    """Claimed rows at once; a row in flight when it would be deferred."""
    lease = make_lease(10)
    lease.claim(NOW_S)
    lease.begin_sync()
    lease.durable()
    send(lease, lease.ready.popleft())
    log = np.zeros(3, ENTRY)
    log["op"] = ADD
    for entry, row in zip(log, (0, 3, 9), strict=True):
        entry["key"] = lease.shard.keys[row]
    lease.suppress(log, NOW_S)
    assert list(lease.ready) == [1, 2, 4, 5, 6, 7, 8]
    assert state(lease, 0) is States.SENDING
    conclude(lease, 0, Stage.RCPT, Event.TRANSIENT, Reply(450, None, "later"))
    assert [state(lease, row) for row in (0, 3, 9)] == [States.SUPPRESSED] * 3
    assert lease.words[counters.SUPPRESSED] == 3


def test_return_stops_claiming(make_lease: MakeLease) -> None:
    """A lease that was told to return is done as soon as nothing is in flight."""
    lease = make_lease(10)
    lease.obey(pack_order(RETURN, gated=True))
    assert lease.stopping
    assert lease.exhausted(NOW_S)


def test_a_message_that_cannot_be_made_fails_its_row_and_says_why(make_lease: MakeLease) -> None:
    """CLAIMED becomes FAILED without an attempt."""
    lease = make_lease(1)
    (row,) = durable(lease)
    record.unsendable(lease, row, "cannot be composed: no such field: `city`", NOW_S)
    assert state(lease, row) is States.FAILED
    assert read_replies(lease.replies.path) == {0: [(0, "cannot be composed: no such field: `city`")]}


def test_a_refusal_whose_text_cannot_be_kept_is_recorded_and_ends_the_lease(make_lease: MakeLease) -> None:
    """What stands at the path is something else: no exception, the reason is told, and the walk meets it at once."""
    lease = make_lease(1)
    lease.replies.path.write_bytes(b"recipients, not replies at all")
    (row,) = durable(lease)
    send(lease, row)
    conclude(lease, row, Stage.RCPT, Event.PERMANENT, Reply(550, (5, 1, 1), "User unknown"))
    assert state(lease, row) is States.BOUNCED
    assert "magic" in lease.fault
    assert lease.stopping
    assert lease.order_word != pack_order(RUN, gated=False)
