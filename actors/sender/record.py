"""What became of an attempt, written down: ledger row, reply text, counters.

The protocol says what happened, `actors.smtp.outcome` what that means for the recipient, `retry` when again; here it
is recorded.  Hot: `sent` runs once a message.

- A refusal's text is handed to the kernel before the record that needs it is stored.
- What would be tried again is CANCELLED under a cancel, SUPPRESSED if the recipient asked meanwhile.
- A recipient whose message may have been accepted is sent a second copy at most once (policy `resend`).
"""

from __future__ import annotations

from typing import Final

from actors.sender.lease import Lease
from actors.sender.retry import GIVE_UP
from actors.smtp.outcome import Outcome, decide
from actors.smtp.reply import Reply
from actors.smtp.transaction import Concluded
from shm.files.durable import FileFault
from shm.files.ledger import States, pack_reply, unpack_a
from shm.live import counters

__all__ = ["sent", "troubled", "unsendable"]

Answer = tuple[int, tuple[int, int, int] | None, int, int]  # code, enhanced status, relay, time


def sent(lease: Lease, row: int, reply: Reply, place: int, now_s: int) -> None:
    """The relay took it."""
    lease.ledger.sent(row, pack_reply(reply.code, reply.enhanced, place), now_s)
    lease.words[counters.SENT] += 1


def troubled(lease: Lease, row: int, concluded: Concluded, place: int, now_s: int, *, behind: bool = False) -> Outcome:
    """Anything but a clean 2xx; returns the verdict, for the connection's sake.

    behind  another message ended the connection before this one was looked at: however often that happens to a
            recipient, he is tried again at once, since each time somebody else got an answer
    """
    reply = concluded.reply
    outcome = decide(concluded, 1 if behind else unpack_a(lease.ledger.a[row]).attempts)
    if reply is not None and outcome.state is not States.SENT:
        _keep_text(lease, row, str(reply))
    answer = (0, None, place, now_s) if reply is None else (reply.code, reply.enhanced, place, now_s)
    if outcome.blame == "sender":
        lease.words[counters.SENDER_FAULT] += 1
    match outcome.state:
        case States.DEFERRED:
            _deferred(lease, row, outcome, answer)
        case States.UNCERTAIN:
            _uncertain(lease, row, answer)
        case state:
            lease.ledger.conclude(row, state, *answer)
            lease.words[_COUNTER[state]] += 1
    return outcome


def unsendable(lease: Lease, row: int, reason: str, now_s: int) -> None:
    """No message can be made for a CLAIMED row, or none that its relay takes: FAILED without an attempt.

    The reason stands where refusals stand.
    """
    _keep_text(lease, row, reason)
    lease.ledger.fail([row], now_s)
    lease.words[counters.FAILED] += 1
    lease.dirty = True


_COUNTER: Final = {
    States.SENT: counters.SENT,
    States.BOUNCED: counters.BOUNCED,
    States.FAILED: counters.FAILED,
    States.CANCELLED: counters.CANCELLED,
    States.UNCERTAIN: counters.UNCERTAIN,
}


def _deferred(lease: Lease, row: int, outcome: Outcome, answer: Answer) -> None:
    ledger, words, now_s = lease.ledger, lease.words, answer[3]
    if lease.cancelled:
        ledger.conclude(row, States.CANCELLED, *answer)
        words[counters.CANCELLED] += 1
        return
    next_s = now_s
    if not outcome.due_now:
        attempts = unpack_a(ledger.a[row]).attempts
        next_s = lease.policy.next_attempt_s(outcome.blame, attempts, now_s, ledger.b[row] >> 32)
    if next_s == GIVE_UP:
        ledger.conclude(row, States.FAILED, *answer)
        words[counters.FAILED] += 1
        return
    ledger.conclude(row, States.DEFERRED, *answer, next_s)
    words[counters.DEFERRED] += 1
    if row in lease.silenced:
        ledger.suppress([row], now_s)
        words[counters.SUPPRESSED] += 1
        return
    lease.deferred(next_s)


def _uncertain(lease: Lease, row: int, answer: Answer) -> None:
    ledger, words = lease.ledger, lease.words
    again = lease.resend and not lease.cancelled and row not in lease.silenced
    if again and ledger.resend(row, *answer):
        words[counters.DEFERRED] += 1
        lease.deferred(answer[3])
        return
    if not again:
        ledger.conclude(row, States.UNCERTAIN, *answer)
    words[counters.UNCERTAIN] += 1


def _keep_text(lease: Lease, row: int, text: str) -> None:
    try:
        lease.replies.append(row, unpack_a(lease.ledger.a[row]).attempts, text)
        lease.replies.flush()
    except (OSError, FileFault) as error:
        # The record is worth more than its text: it is stored all the same, and the lease ends as after a failed sync.
        lease.fail(f"{lease.replies.path.name}: {error.strerror}" if isinstance(error, OSError) else str(error))
