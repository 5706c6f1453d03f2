"""The ledger: words, header, scans and the holder's changes."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shm.files.durable import FileDamaged
from shm.files.ledger import (
    TRANSITIONS,
    Counts,
    Ledger,
    LedgerMismatch,
    Row,
    States,
    Writer,
    pack_a,
    pack_reply,
    unpack_a,
)

INSTANCE = "ab" * 16
BOOT = "3f0c9a52-6a5b-4a3e-9d6e-0c4f6f1f2a3b"
NOW = 1_700_000_000
SENT, DEFERRED, UNCERTAIN = States.SENT, States.DEFERRED, States.UNCERTAIN


def make(path: Path, rows: int = 300) -> Ledger:
    Ledger.create(path, instance=INSTANCE, campaign=7, shard=3, rows=rows)
    return Ledger.open(path, instance=INSTANCE, campaign=7, shard=3, writable=True)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger of 300 pending rows, open for writing."""
    opened = make(tmp_path / "shard-000003.ledger")
    yield opened
    opened.close()


def attempt(ledger: Ledger, row: int, state: States, code: int = 250, next_s: int = 0, now_s: int = NOW) -> None:
    ledger.claim([row])
    ledger.sending(row, now_s)
    ledger.conclude(row, state, code, (code // 100, 7, 1), 2, now_s + 1, next_s)


def times(ledger: Ledger, row: int) -> tuple[int, int]:
    """(next attempt, first attempt or conclusion) of a row."""
    return ledger.b[row] & 0xFFFF_FFFF, ledger.b[row] >> 32


# Words.


def test_a_word_says_what_was_packed_into_it() -> None:
    """State, attempts, sticky, code, enhanced status and relay come back from word A."""
    row = Row(DEFERRED, 3, True, 451, (4, 7, 1), 9)
    assert unpack_a(pack_a(*row)) == row
    assert pack_a(States.PENDING) == 0


def test_fields_of_a_word_are_clamped_and_never_run_into_each_other() -> None:
    """Numbers beyond a field become the field's greatest, negative ones 0."""
    word = pack_a(SENT, 999, False, 100_000, (5, 7, 512), 300)
    assert unpack_a(word) == Row(SENT, 255, False, 65_535, (5, 7, 255), 255)
    assert unpack_a(pack_a(SENT, -1, False, -1, (-1, 0, 0), -1)) == Row(SENT, 0, False, 0, (0, 0, 0), 0)


def test_a_state_that_does_not_exist_is_not_packed_or_unpacked() -> None:
    """The numbers from 11 to 15 are no states."""
    for number in range(11, 16):
        with pytest.raises(ValueError, match="not a valid"):
            pack_a(number)
        with pytest.raises(ValueError, match="not a valid"):
            unpack_a(number)


def test_a_reply_without_an_enhanced_status_packs_zeros() -> None:
    """No status and 0.0.0 are the same."""
    assert pack_reply(250, None, 1) == pack_reply(250, (0, 0, 0), 1)


def test_counts_add_up() -> None:
    """Sums of counts sum every number, and take the earliest and the latest time there is."""
    one = Counts((1,) * 11, 5, 1, 0, 0, 10)
    two = Counts((2,) * 11, 7, 0, NOW, 9, 4)
    total = one + two
    assert total == Counts((3,) * 11, 12, 1, NOW, 9, 10)
    assert total + Counts() == total
    assert (total.audience, total.duplicates, total.in_flight) == (30, 3, 6)
    nine = ("pending", "in_flight", "deferred", "sent", "bounced", "failed", "suppressed", "cancelled", "uncertain")
    assert sum(getattr(total, name) for name in nine) == total.audience


def test_nothing_leaves_a_state_that_is_final() -> None:
    """SENT, BOUNCED, SUPPRESSED, CANCELLED and DUPLICATE are ends; FAILED and UNCERTAIN go to DEFERRED alone."""
    ends = {States.SENT, States.BOUNCED, States.SUPPRESSED, States.CANCELLED, States.DUPLICATE}
    assert not [way for way in TRANSITIONS if way[0] in ends]
    assert {way[1] for way in TRANSITIONS if way[0] in {States.FAILED, UNCERTAIN}} == {DEFERRED}


def test_only_sending_leads_to_sent() -> None:
    """Nobody is said to be mailed whose message was not handed over, and only its holder says so."""
    assert [way for way in TRANSITIONS if way[1] is SENT] == [(States.SENDING, SENT, Writer.HOLDER)]


# The file.


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("instance", {"instance": "cd" * 16, "campaign": 7, "shard": 3}),
        ("campaign", {"instance": INSTANCE, "campaign": 8, "shard": 3}),
        ("shard", {"instance": INSTANCE, "campaign": 7, "shard": 4}),
    ],
)
def test_another_ledger_is_refused_by_the_name_of_the_field(
    ledger: Ledger, field: str, wanted: dict[str, object]
) -> None:
    """A ledger of another instance, campaign or shard says which of them differs."""
    with pytest.raises(LedgerMismatch) as raised:
        Ledger.open(ledger.path, writable=False, **wanted)  # type: ignore[arg-type]
    assert raised.value.field == field


def test_a_damaged_or_cut_ledger_is_refused(ledger: Ledger) -> None:
    """A flipped byte of the identity, a missing tail, another version: none is opened."""
    data = ledger.path.read_bytes()
    for at in range(64):
        ledger.path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises((LedgerMismatch, FileDamaged)):
            Ledger.open(ledger.path, instance=INSTANCE, campaign=7, shard=3, writable=False)
    for size in (0, 63, 4096, len(data) - 1):
        ledger.path.write_bytes(data[:size])
        with pytest.raises(FileDamaged):
            Ledger.open(ledger.path, instance=INSTANCE, campaign=7, shard=3, writable=False)
    ledger.path.write_bytes(data)


def test_a_ledger_opened_to_read_cannot_be_changed(ledger: Ledger) -> None:
    """A reader's mapping refuses stores, and shows at once what the writer stores."""
    reader = Ledger.open(ledger.path, instance=INSTANCE, campaign=7, shard=3, writable=False)
    with pytest.raises(TypeError):
        reader.a[0] = 1
    attempt(ledger, 5, SENT)
    assert unpack_a(reader.a[5]) == Row(SENT, 1, False, 250, (2, 7, 1), 2)
    assert reader.count() == ledger.count()
    reader.close()
    reader.close()


def test_words_outlive_their_ledger(ledger: Ledger) -> None:
    """An array somebody holds stays readable after close."""
    words = ledger.words()
    ledger.close()
    assert words.sum() == 0


def test_a_row_with_no_state_is_damage_that_names_the_row(ledger: Ledger) -> None:
    """A count over a row whose low bits are no state raises instead of losing a recipient."""
    for byte in (11, 15, 0x10, 0x8B):
        ledger.a[17] = byte
        with pytest.raises(FileDamaged, match=f"row 17 begins with byte {byte}"):
            ledger.count()


def test_an_image_restored_is_the_ledger_as_it_was_in_memory(ledger: Ledger, tmp_path: Path) -> None:
    """After a failed sync the rows live on in a new file under the same name."""
    attempt(ledger, 5, SENT)
    image = ledger.image()
    Ledger.restore(ledger.path, image)
    attempt(ledger, 6, SENT)  # into the lost file
    again = Ledger.open(ledger.path, instance=INSTANCE, campaign=7, shard=3, writable=True)
    assert again.count().sent == 1
    again.close()


# Leases.


def test_a_new_ledger_is_counted_from_its_rows(ledger: Ledger) -> None:
    """Epoch 0 was never closed: no summary, until a lease has been returned."""
    assert (ledger.open_epoch, ledger.closed_epoch, ledger.boot_id, ledger.summary()) == (0, 0, "", None)
    assert ledger.count() == Counts((300, *[0] * 10))


def test_the_summary_is_true_only_between_leases(ledger: Ledger) -> None:
    """It is None from the opening of a lease to its return, then it is what a recount gives."""
    ledger.open_lease(1, 4, BOOT)
    assert (ledger.open_epoch, ledger.holder, ledger.boot_id, ledger.leases_since_progress) == (1, 4, BOOT, 1)
    attempt(ledger, 0, SENT)
    attempt(ledger, 1, DEFERRED, 451, NOW + 300)
    assert ledger.summary() is None
    counts = ledger.close_lease(1, NOW * 10**9 + 5, NOW * 10**9 + 10**9 + 7)
    assert counts == ledger.summary() == ledger.count()
    assert (counts.sent, counts.deferred, counts.pending, counts.attempts) == (1, 1, 298, 2)
    assert counts.next_attempt_s == ledger.next_due_s() == NOW + 300
    assert counts.first_attempt_ns == NOW * 10**9 + 5
    assert counts.last_conclusion_ns == NOW * 10**9 + 10**9 + 7
    assert ledger.leases_since_progress == 0
    ledger.open_lease(2, 5, BOOT)
    assert ledger.summary() is None


def test_epochs_of_a_ledger_only_grow(ledger: Ledger) -> None:
    """A lease with an old number, and the return of a lease that is not the newest, are faults of ours."""
    ledger.open_lease(3, 1, BOOT)
    with pytest.raises(AssertionError):
        ledger.open_lease(3, 1, BOOT)
    with pytest.raises(AssertionError):
        ledger.close_lease(2)


def test_a_lease_is_not_returned_with_something_in_flight(ledger: Ledger) -> None:
    """A claimed row must go back before the epoch is closed."""
    ledger.open_lease(1, 1, BOOT)
    ledger.claim([0])
    with pytest.raises(AssertionError):
        ledger.close_lease(1)
    assert ledger.summary() is None


def test_times_of_a_lease_only_widen_what_the_header_knows(ledger: Ledger) -> None:
    """The first attempt of all leases is the earliest, the last conclusion the latest; 0 says nothing."""
    for first, last, expected in [(50, 60, (50, 60)), (70, 90, (50, 90)), (0, 0, (50, 90)), (40, 80, (40, 90))]:
        ledger.note_times(first, last)
        assert (ledger.first_attempt_ns, ledger.last_conclusion_ns) == expected


def test_without_a_holders_times_a_recount_falls_back_to_seconds(ledger: Ledger) -> None:
    """After a crash first attempt and last conclusion are those that the rows know."""
    ledger.claim([0, 1, 2])
    ledger.sending(0, NOW)
    ledger.sending(1, NOW + 5)
    ledger.conclude(1, SENT, 250, None, 0, NOW + 9)
    ledger.suppress([2], NOW + 100)
    counts = ledger.count()
    assert (counts.first_attempt_ns, counts.last_conclusion_ns) == (NOW * 10**9, (NOW + 9) * 10**9)


def test_deaths_without_progress_are_counted_by_leases(ledger: Ledger) -> None:
    """Each lease adds one until its holder tells of progress or returns it."""
    for epoch in (1, 2, 3):
        ledger.open_lease(epoch, 1, BOOT)
    assert ledger.leases_since_progress == 3
    ledger.progressed()
    assert ledger.leases_since_progress == 0


# Rows.


def test_a_first_attempt_keeps_its_time_until_the_row_concludes(ledger: Ledger) -> None:
    """The upper half of B is the first attempt through every retry, and the conclusion in the end."""
    attempt(ledger, 0, DEFERRED, 451, NOW + 300)
    assert times(ledger, 0) == (NOW + 300, NOW)
    attempt(ledger, 0, DEFERRED, 452, NOW + 900, now_s=NOW + 300)
    assert times(ledger, 0) == (NOW + 900, NOW)
    attempt(ledger, 0, SENT, 250, now_s=NOW + 900)
    assert times(ledger, 0) == (0, NOW + 901)
    assert unpack_a(ledger.a[0]) == Row(SENT, 3, False, 250, (2, 7, 1), 2)


def test_attempts_stay_at_255_and_leave_the_reply_alone(ledger: Ledger) -> None:
    """The 256th attempt does not carry into the reply code."""
    ledger.a[0] = pack_a(DEFERRED, 254, False, 451, (4, 7, 1), 3)
    for expected in (255, 255):
        ledger.claim([0])
        ledger.sending(0, NOW)
        assert unpack_a(ledger.a[0]) == Row(States.SENDING, expected, False, 451, (4, 7, 1), 3)
        ledger.conclude(0, DEFERRED, 451, (4, 7, 1), 3, NOW, NOW)


def test_a_claim_leaves_word_b_and_goes_back_to_what_it_was(ledger: Ledger) -> None:
    """A row never attempted returns to PENDING; one attempted, or sticky, to DEFERRED with its time."""
    attempt(ledger, 1, DEFERRED, 451, NOW + 300)
    ledger.a[2] = pack_a(DEFERRED, 0, True)
    ledger.b[2] = NOW
    before = [(ledger.a[row], ledger.b[row]) for row in range(3)]
    ledger.claim(np.arange(3))
    assert [ledger.b[row] for row in range(3)] == [b for _, b in before]
    assert ledger.count().in_flight == 3
    ledger.unclaim([0, 1, 2])
    assert [(ledger.a[row], ledger.b[row]) for row in range(3)] == before


def test_due_rows_are_the_pending_and_those_whose_time_has_come(ledger: Ledger) -> None:
    """In shard order, as a copy that later writes do not move."""
    attempt(ledger, 2, DEFERRED, 451, NOW + 300)
    attempt(ledger, 3, SENT)
    ledger.claim(np.arange(4, 300))
    assert ledger.due(NOW + 299).tolist() == [0, 1]
    due = ledger.due(NOW + 300)
    assert due.tolist() == [0, 1, 2]
    ledger.claim(due)
    assert due.tolist() == [0, 1, 2]
    assert ledger.due(NOW + 300).tolist() == []
    assert ledger.next_due_s() == 0


def test_a_row_expires_by_its_first_attempt_and_never_before_it_had_one(ledger: Ledger) -> None:
    """give_up_s counts from the first attempt; a DEFERRED row that was never attempted stays."""
    attempt(ledger, 0, DEFERRED, 451, NOW + 300)
    attempt(ledger, 1, DEFERRED, 451, NOW + 300, now_s=NOW + 1)
    ledger.a[2] = pack_a(DEFERRED, 0, True)
    assert ledger.expired(NOW + 86_399, 86_400).tolist() == []
    assert ledger.expired(NOW + 86_400, 86_400).tolist() == [0]
    ledger.fail(ledger.expired(NOW + 90_000, 86_400), NOW + 90_000)
    assert unpack_a(ledger.a[1]) == Row(States.FAILED, 1, False, 451, (4, 7, 1), 2)
    assert times(ledger, 1) == (0, NOW + 90_000)


def test_an_uncertain_row_is_sent_once_more_and_not_a_third_time(ledger: Ledger) -> None:
    """`resend` makes a row sticky and due now; the second time it concludes UNCERTAIN."""
    ledger.claim([0])
    ledger.sending(0, NOW)
    assert ledger.resend(0, 0, None, 1, NOW + 7)
    assert unpack_a(ledger.a[0]) == Row(DEFERRED, 1, True, 0, (0, 0, 0), 1)
    assert times(ledger, 0) == (NOW + 7, NOW)
    assert ledger.count().resent == 0, "not yet"
    ledger.claim([0])
    ledger.sending(0, NOW + 8)
    assert ledger.count().resent == 1
    assert not ledger.resend(0, 0, None, 1, NOW + 9)
    assert unpack_a(ledger.a[0]) == Row(UNCERTAIN, 2, True, 0, (0, 0, 0), 1)
    assert times(ledger, 0) == (0, NOW + 9)
    assert ledger.count().resent == 1


def test_sticky_survives_every_outcome(ledger: Ledger) -> None:
    """A row that may have been accepted before says so for ever."""
    ledger.claim([0])
    ledger.sending(0, NOW)
    ledger.resend(0, 0, None, 1, NOW)
    attempt(ledger, 0, DEFERRED, 451, NOW)
    attempt(ledger, 0, SENT)
    assert unpack_a(ledger.a[0]).sticky
    assert ledger.count().resent == 1


CHANGES = {
    "claim": (lambda ledger, row: ledger.claim([row]), {States.PENDING, DEFERRED}),
    "unclaim": (lambda ledger, row: ledger.unclaim([row]), {States.CLAIMED}),
    "sending": (lambda ledger, row: ledger.sending(row, NOW), {States.CLAIMED}),
    "conclude": (lambda ledger, row: ledger.conclude(row, SENT, 250, None, 0, NOW), {States.SENDING}),
    "resend": (lambda ledger, row: ledger.resend(row, 0, None, 0, NOW), {States.SENDING}),
    "suppress": (lambda ledger, row: ledger.suppress([row], NOW), {States.PENDING, States.CLAIMED, DEFERRED}),
    "cancel": (lambda ledger, row: ledger.cancel([row], NOW), {States.PENDING, States.CLAIMED, DEFERRED}),
    "fail": (lambda ledger, row: ledger.fail([row], NOW), {States.CLAIMED, DEFERRED}),
    "mark_duplicates": (lambda ledger, row: ledger.mark_duplicates([row]), {States.PENDING}),
}


@pytest.mark.parametrize(
    ("name", "state"), list(itertools.product(CHANGES, States)), ids=lambda part: getattr(part, "name", part)
)
def test_a_change_is_made_from_the_states_it_may_come_from_and_no_other(
    ledger: Ledger, name: str, state: States
) -> None:
    """Each named change, tried on a row in every state: a way of TRANSITIONS, or an assertion and no store."""
    change, allowed = CHANGES[name]
    ledger.a[0] = word = pack_a(state, 1)
    if state in allowed:
        change(ledger, 0)
        to = unpack_a(ledger.a[0]).state
        assert {way[2] for way in TRANSITIONS if way[:2] == (state, to)} & {Writer.HOLDER, Writer.LOADER}
        return
    with pytest.raises(AssertionError):
        change(ledger, 0)
    assert (ledger.a[0], ledger.b[0]) == (word, 0)


def test_changes_of_no_rows_change_nothing(ledger: Ledger) -> None:
    """An empty batch is allowed everywhere."""
    for change in (ledger.claim, ledger.unclaim, ledger.suppress, ledger.mark_duplicates):
        change([])
    for timed in (ledger.cancel, ledger.fail):
        timed([], NOW)
    assert ledger.count() == Counts((300, *[0] * 10))


def test_an_empty_ledger_counts_nothing(tmp_path: Path) -> None:
    """A shard of no rows is allowed and finished."""
    ledger = make(tmp_path / "empty", 0)
    assert ledger.count() == Counts((0,) * 11)
    assert ledger.due(NOW).tolist() == []
    ledger.close()
