"""What the broker does to a ledger nobody leases: recovery, cancel, retry, give-up."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from shm.files.ledger import Ledger, Recovered, Row, States, pack_a, unpack_a
from shm.files.ledger_idle import Retried, at_fault, retryable, suppress_idle

INSTANCE = "ab" * 16
BOOT = "3f0c9a52-6a5b-4a3e-9d6e-0c4f6f1f2a3b"
NOW = 1_700_000_000
P, C, S, D, F, U = (
    States.PENDING,
    States.CLAIMED,
    States.SENDING,
    States.DEFERRED,
    States.FAILED,
    States.UNCERTAIN,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Seven rows as a dead holder may leave them; 6 is sent."""
    path = tmp_path / "shard-000003.ledger"
    Ledger.create(path, instance=INSTANCE, campaign=7, shard=3, rows=7)
    opened = Ledger.open(path, instance=INSTANCE, campaign=7, shard=3, writable=True)
    opened.open_lease(1, 2, BOOT)
    first = NOW - 100 << 32
    rows = [
        (pack_a(P), 0),
        (pack_a(C), 0),
        (pack_a(C, 1, False, 451), first | NOW - 5),
        (pack_a(S, 1), first),
        (pack_a(S, 2, True, 451), first),
        (pack_a(D, 1, False, 451), first | NOW + 300),
        (pack_a(States.SENT, 1, False, 250), NOW - 50 << 32),
    ]
    for row, (a, b) in enumerate(rows):
        opened.b[row], opened.a[row] = b, a
    yield opened
    opened.close()


def states(ledger: Ledger) -> list[States]:
    return [unpack_a(ledger.a[row]).state for row in range(ledger.rows)]


def test_after_a_process_death_claims_go_back_and_what_was_sent_is_sent_again(ledger: Ledger) -> None:
    """CLAIMED returns to what it was; SENDING is due now and sticky; what is sticky already stays UNCERTAIN."""
    assert ledger.recover(False, "resend", NOW) == Recovered(released=2, uncertain=2, resent=1, held=1)
    assert states(ledger) == [P, P, D, D, U, D, States.SENT]
    assert unpack_a(ledger.a[3]) == Row(D, 1, True, 0, (0, 0, 0), 0)
    assert ledger.b[3] == (NOW - 100 << 32 | NOW)
    assert ledger.b[2] == (NOW - 100 << 32 | NOW - 5)
    assert ledger.b[4] == NOW << 32
    assert ledger.summary() == ledger.count()


def test_under_hold_what_was_sent_stays_uncertain(ledger: Ledger) -> None:
    """Nothing is sent again, and nothing becomes sticky."""
    assert ledger.recover(False, "hold", NOW) == Recovered(released=2, uncertain=2, held=2)
    assert states(ledger) == [P, P, D, U, U, D, States.SENT]
    assert not unpack_a(ledger.a[3]).sticky


def test_after_a_power_loss_claims_are_uncertain_too(ledger: Ledger) -> None:
    """A row the disk knows as CLAIMED may have been sent: it is sent again, sticky, its attempts as they were."""
    assert ledger.recover(True, "resend", NOW) == Recovered(uncertain=4, resent=3, held=1)
    assert states(ledger) == [P, D, D, D, U, D, States.SENT]
    assert unpack_a(ledger.a[1]) == Row(D, 0, True, 0, (0, 0, 0), 0)
    assert ledger.b[1] == NOW


def test_poison_fails_what_was_sent_or_composed_and_nobody_who_merely_waited(ledger: Ledger) -> None:
    """Row 1 was being composed, 2 waited for its turn; rows that are not in flight cannot be convicted."""
    assert at_fault(ledger, None) == [3, 4]
    assert at_fault(ledger, 1) == [3, 4, 1]
    found = ledger.recover(False, "resend", NOW, poison=[*at_fault(ledger, 1), 0, 6])
    assert found == Recovered(released=1, poisoned=3)
    assert states(ledger) == [P, F, D, F, F, D, States.SENT]
    assert ledger.summary() == ledger.count()


def test_recovering_a_ledger_at_rest_writes_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second recovery finds nothing to do and syncs nothing."""
    ledger.recover(False, "resend", NOW)
    image = ledger.image()
    monkeypatch.setattr(os, "fdatasync", lambda _: pytest.fail("synced"))
    assert ledger.recover(False, "resend", NOW + 9) == Recovered()
    assert ledger.give_up(NOW, 86_400) == 0
    assert ledger.retry({F}, NOW) == Retried()
    assert ledger.image() == image


def test_a_holder_that_died_after_its_last_conclusion_leaves_a_ledger_that_is_closed_at_once(ledger: Ledger) -> None:
    """With no row in flight recovery only writes the summary."""
    ledger.recover(False, "resend", NOW)
    ledger.open_lease(2, 2, BOOT)
    assert ledger.summary() is None
    assert ledger.recover(False, "resend", NOW) == Recovered()
    assert ledger.summary() == ledger.count()


def test_cancel_ends_all_that_has_not_concluded(ledger: Ledger) -> None:
    """PENDING and DEFERRED rows become CANCELLED; what is uncertain or sent stays."""
    ledger.recover(False, "hold", NOW)
    assert ledger.cancel_idle(NOW + 1) == 4
    assert states(ledger) == [States.CANCELLED] * 3 + [U, U, States.CANCELLED, States.SENT]
    assert ledger.b[0] == NOW + 1 << 32
    assert ledger.summary() == ledger.count()


def test_retry_makes_failed_and_uncertain_rows_due_and_starts_their_time_anew(ledger: Ledger) -> None:
    """An UNCERTAIN row becomes sticky, a FAILED one does not; neither is given up before its next attempt."""
    ledger.recover(False, "hold", NOW)
    ledger.a[5] = pack_a(F, 4, False, 451)
    assert retryable(ledger, {F, U}) == Retried(failed=1, uncertain=2)
    assert ledger.retry({F, U}, NOW + 10) == Retried(failed=1, uncertain=2)
    assert ledger.summary() == ledger.count()
    assert [unpack_a(ledger.a[row]) for row in (3, 5)] == [
        Row(D, 1, True, 0, (0, 0, 0), 0),
        Row(D, 4, False, 451, (0, 0, 0), 0),
    ]
    assert ledger.b[3] == ledger.b[5] == NOW + 10
    assert ledger.give_up(NOW + 90_000, 86_400) == 1  # row 2, which was not retried
    assert {3, 4, 5} <= set(ledger.due(NOW + 10).tolist())


def test_retry_takes_the_states_it_is_told(ledger: Ledger) -> None:
    """Only FAILED when only FAILED is asked for, and never a state that is an end."""
    ledger.recover(False, "hold", NOW)
    assert ledger.retry({F}, NOW) == Retried()
    assert ledger.retry({U}, NOW) == Retried(uncertain=2)
    with pytest.raises(AssertionError):
        ledger.retry({States.BOUNCED}, NOW)


def test_retry_done_again_leaves_who_failed_again_meanwhile(ledger: Ledger) -> None:
    """`until_s` is the second of the decision: what concluded later is another failure, and not meant."""
    ledger.recover(False, "hold", NOW)
    ledger.a[5], ledger.b[5] = pack_a(F, 4, False, 451), NOW + 5 << 32
    assert retryable(ledger, {F, U}, NOW) == Retried(uncertain=2)
    assert ledger.retry({F, U}, NOW + 9, NOW) == Retried(uncertain=2)
    assert ledger.retry({F, U}, NOW + 9, NOW) == Retried()
    assert ledger.retry({F, U}, NOW + 9, NOW + 5) == Retried(failed=1)


def test_suppressing_takes_who_is_still_to_be_mailed_and_nobody_else(ledger: Ledger) -> None:
    """PENDING and DEFERRED among the rows named; others stay as they are."""
    ledger.recover(False, "hold", NOW)
    assert suppress_idle(ledger, np.array([0, 3, 5, 6]), NOW + 1) == 2
    assert states(ledger) == [States.SUPPRESSED, P, D, U, U, States.SUPPRESSED, States.SENT]
    assert ledger.b[5] == NOW + 1 << 32
    assert ledger.summary() == ledger.count()


@pytest.mark.parametrize("tried", [False, True])
def test_who_may_have_got_it_and_is_mailed_no_more_is_uncertain(ledger: Ledger, tried: bool) -> None:
    """Suppressed or cancelled after a retry was decided: nobody says that they got nothing; resent only if tried."""
    ledger.recover(False, "hold", NOW)
    assert ledger.retry({U}, NOW) == Retried(uncertain=2)
    assert ledger.count().resent == 1, "row 4, which was being sent again when its holder died"
    if tried:
        ledger.claim([3])
        ledger.sending(3, NOW)
        ledger.conclude(3, D, 451, (4, 7, 1), 0, NOW, NOW + 60)
    assert suppress_idle(ledger, np.array([0, 3]), NOW + 1) == 2
    assert ledger.cancel_idle(NOW + 2) == 4
    assert states(ledger) == [
        States.SUPPRESSED,
        States.CANCELLED,
        States.CANCELLED,
        U,
        U,
        States.CANCELLED,
        States.SENT,
    ]
    assert ledger.count().resent == (2 if tried else 1)
    assert ledger.count().uncertain == 2


def test_give_up_fails_rows_by_their_first_attempt(ledger: Ledger) -> None:
    """DEFERRED rows whose first attempt is give_up_s old are FAILED, whatever their next attempt."""
    ledger.recover(False, "hold", NOW)
    assert ledger.give_up(NOW, 101) == 0
    assert ledger.give_up(NOW, 100) == 2
    assert states(ledger) == [P, P, F, U, U, F, States.SENT]
    assert ledger.summary() == ledger.count()


CHANGES: dict[str, Callable[[Ledger], object]] = {
    "recover": lambda ledger: ledger.recover(True, "resend", NOW),
    "cancel_idle": lambda ledger: ledger.cancel_idle(NOW),
    "retry": lambda ledger: ledger.retry({U}, NOW),
    "give_up": lambda ledger: ledger.give_up(NOW, 1),
    "suppress_idle": lambda ledger: suppress_idle(ledger, np.arange(7), NOW),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_wherever_a_sync_fails_no_summary_claims_to_be_true(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, change: str, failing: int
) -> None:
    """An error of the disk during a change reaches the caller, and the ledger is one that must be counted or true."""
    if change != "recover":
        ledger.recover(False, "hold", NOW)
    calls = 0

    def failing_sync(_descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", failing_sync)
    with suppress(OSError):
        CHANGES[change](ledger)
    assert calls <= failing, "nothing goes on after a failed sync"
    assert ledger.summary() in {None, ledger.count()}
