"""A real sender process, a real sink, and a test in the broker's place: what the ledger says afterwards."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from shm.files.ledger import States
from shm.live.leases import CANCEL, RETURN
from shm.live.relays import FAILURES
from shm.live.suppressed import REMOVE

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.lone_sender import LoneSender, StartLone
    from tests.fixtures.postfix import RunningPostfix
    from tests.fixtures.sink import StartSink

pytest_plugins = ["tests.fixtures.lone_sender"]

ROW = 1  # the sender's, in every table


def people(n: int, tag: str = "user") -> list[str]:
    return [f"{tag}{number}@example.com" for number in range(n)]


def states(lone: LoneSender, campaign: int = 7) -> list[str]:
    return [row.state.name for row in lone.rows(campaign)]


def test_every_recipient_gets_the_message_once_and_the_lease_is_closed(sink: StartSink, lone_sender: StartLone) -> None:
    """A shard of a thousand is sent, each message once, personal, and the summary says so."""
    relay = sink(keep=True)
    lone = lone_sender(relay)
    lone.campaign(7, people(1000))
    counts = lone.wait_done(lone.offer(7))
    assert (counts.sent, counts.attempts, counts.in_flight, counts.pending) == (1000, 1000, 0, 0)
    assert 0 < counts.first_attempt_ns <= counts.last_conclusion_ns <= lone.clock.now_ns()
    messages = relay.messages()
    assert Counter(m["rcpt_to"] for m in messages) == Counter(people(1000))
    assert all(f"Hello {m['rcpt_to'].partition('@')[0]}" in m["data"] for m in messages)
    tenant, events = lone.counters.read(ROW, 0)
    assert (tenant, events.attempted, events.sent) == (1, 1000, 1000)


def test_an_offer_whose_message_was_lost_is_seen_all_the_same(sink: StartSink, lone_sender: StartLone) -> None:
    """The lease table is the truth: without a wake message the lease is worked too."""
    lone = lone_sender(sink())
    lone.campaign(7, people(3))
    assert lone.wait_done(lone.offer(7, wake=False)).sent == 3


def test_refusals_are_recorded_with_code_and_text(sink: StartSink, lone_sender: StartLone) -> None:
    """5xx bounces, 4xx defers to a later time, and the relay's words stand beside the ledger."""
    lone = lone_sender(sink())
    lone.campaign(7, ["bounce@example.com", "anna@example.com", "defer@example.com", "body-554-5.6.0@example.com"])
    counts = lone.wait_done(lone.offer(7))
    rows = lone.rows(7)
    assert [row.state.name for row in rows] == ["BOUNCED", "SENT", "DEFERRED", "BOUNCED"]
    assert [row.code for row in rows] == [550, 250, 450, 554]
    assert rows[0].enhanced == (5, 1, 1)
    assert [row.attempts for row in rows] == [1, 1, 1, 1]
    texts = lone.replies(7)
    assert sorted(texts) == [0, 2, 3]
    assert texts[0] == [(1, "550 5.1.1 User unknown")]
    assert lone.clock.now_s() + 290 < counts.next_attempt_s <= lone.clock.now_s() + 361


def test_a_deferred_recipient_is_tried_again_when_its_time_has_come(sink: StartSink, lone_sender: StartLone) -> None:
    """With an interval of a second the retry belongs to the lease that is held."""
    lone = lone_sender(sink())
    lone.campaign(7, ["rcpt-450-once@example.com", "anna@example.com"], retry={"first_s": 1, "max_s": 1})
    counts = lone.wait_done(lone.offer(7))
    assert (counts.sent, counts.attempts, counts.resent) == (2, 3, 0)


def test_a_recipient_deferred_for_too_long_is_given_up(sink: StartSink, lone_sender: StartLone) -> None:
    """give_up_s after the first attempt a DEFERRED row becomes FAILED."""
    lone = lone_sender(sink())
    lone.campaign(7, ["defer@example.com"], retry={"first_s": 1, "max_s": 1}, give_up_s=2)
    counts = lone.wait_done(lone.offer(7))
    assert counts.failed == 1
    assert 1 <= counts.attempts <= 3


def test_who_is_overdue_is_given_up_while_the_relay_is_down(sink: StartSink, lone_sender: StartLone) -> None:
    """A lease that is held without a relay does not wait for one to fail whoever is overdue."""
    relay = sink()
    lone = lone_sender(relay)
    lone.campaign(7, ["defer@example.com"], retry={"first_s": 1, "max_s": 1}, give_up_s=3)
    number = lone.offer(7)
    lone.wait(lambda: lone.counts(7).deferred, "one deferred")
    relay.stop()
    assert lone.wait_done(number).failed == 1
    assert lone.rows(7)[0].attempts <= 3


def test_trace_files_are_closed_with_the_last_lease_of_their_campaign(sink: StartSink, lone_sender: StartLone) -> None:
    """Otherwise a sender would end with a descriptor for each campaign it ever worked at."""
    lone = lone_sender(sink(), settings={"engine": {"trace": True}})

    def traces() -> list[str]:
        files = Path(f"/proc/{lone.child.pid}/fd")
        return [target for link in files.iterdir() if "/trace/" in (target := str(link.readlink()))]

    for campaign in (7, 8):
        lone.campaign(campaign, people(30))
        assert lone.wait_done(lone.offer(campaign)).attempts == 30
        lone.wait(lambda: not traces(), "no trace open")
    assert [path.stat().st_size for path in lone.state.trace.iterdir()] == [30 * 16] * 2


def test_a_connection_lost_before_the_body_costs_nobody_anything(sink: StartSink, lone_sender: StartLone) -> None:
    """Dropped before DATA is answered: tried again at once, on another connection, and not marked as resent."""
    relay = sink("--no-chunking", keep=True)  # in a window of BDAT the body leaves before any answer
    lone = lone_sender(relay)
    lone.campaign(7, [*people(20), "drop-before-once@example.com", *people(20, "other"), "421-once@example.com"],
                  retry={"first_s": 1, "max_s": 1})  # fmt: skip
    counts = lone.wait_done(lone.offer(7))
    assert (counts.sent, counts.resent, counts.uncertain) == (42, 0, 0)
    assert max(Counter(m["rcpt_to"] for m in relay.messages()).values()) == 1


def test_a_body_without_an_answer_is_sent_a_second_time_once(sink: StartSink, lone_sender: StartLone) -> None:
    """Policy resend: lost after the body means one more copy, with the same Message-ID, and then no third."""
    relay = sink(keep=True)
    lone = lone_sender(relay)
    lone.campaign(7, ["drop-after-once@example.com", "drop-after@example.com", "anna@example.com"])
    counts = lone.wait_done(lone.offer(7))
    assert states(lone) == ["SENT", "UNCERTAIN", "SENT"]
    assert counts.resent == 2
    final = relay.stop()
    assert final["dropped_after"] == 3  # once and twice; whoever stood behind them was lost before, and tried again


def test_under_hold_a_body_without_an_answer_stays_uncertain(sink: StartSink, lone_sender: StartLone) -> None:
    """Policy hold: nobody gets a second copy."""
    lone = lone_sender(sink())
    lone.campaign(7, ["drop-after@example.com", "anna@example.com"], uncertain="hold")
    counts = lone.wait_done(lone.offer(7))
    assert states(lone) == ["UNCERTAIN", "SENT"]
    assert counts.resent == 0


def test_a_recipient_who_cannot_be_written_to_is_failed_and_says_why(sink: StartSink, lone_sender: StartLone) -> None:
    """A row whose message cannot be composed fails alone."""
    lone = lone_sender(sink())
    lone.campaign(7, ["anna@example.com", "x" * 70 + "@example.com", "berta@example.com"])
    counts = lone.wait_done(lone.offer(7))
    assert (counts.sent, counts.failed, counts.attempts) == (2, 1, 2)
    assert lone.replies(7)[1][0][1].startswith("cannot be composed: address too long")


def test_a_message_too_big_for_its_relay_fails_before_it_is_sent(sink: StartSink, lone_sender: StartLone) -> None:
    """SIZE: such a row fails alone, without an attempt, and the reason names both sizes."""
    relay = sink("--size", "3000", keep=True)
    lone = lone_sender(relay)
    text = "{{ first_name }}{% if first_name == 'big' %}" + "Autumn brings new colours.\n" * 200 + "{% endif %}\n"
    lone.campaign(7, ["anna@example.com", "big@example.com", "berta@example.com"], text=text)
    counts = lone.wait_done(lone.offer(7))
    assert states(lone) == ["SENT", "FAILED", "SENT"]
    assert counts.attempts == 2
    assert len(relay.messages()) == 2
    ((attempt, reason),) = lone.replies(7)[1]
    assert attempt == 0
    assert re.fullmatch(r"the message has [56]\d{3} bytes, relay `default` takes 3000", reason)


def test_a_distant_relay_is_sent_windows_of_messages(sink: StartSink, lone_sender: StartLone) -> None:
    """One connection, 30 ms for each answer: 600 messages take a small part of 600 x 30 ms, and each arrives once."""
    relay = sink("--latency", "30", keep=True)
    lone = lone_sender(relay, connections=1)
    lone.campaign(7, people(600))
    began = time.monotonic()
    assert lone.wait_done(lone.offer(7)).sent == 600
    assert time.monotonic() - began < 600 * 0.030 / 3
    assert Counter(m["rcpt_to"] for m in relay.messages()) == Counter(people(600))
    assert lone.relays.use(ROW, 0).window > 1


def test_who_was_suppressed_since_the_snapshot_is_not_mailed(sink: StartSink, lone_sender: StartLone) -> None:
    """The last change counts: suppressed and let in again is mailed; older changes than the snapshot are not read."""
    lone = lone_sender(sink())
    lone.suppress("user0@example.com")  # position 1: the snapshot knew it
    lone.suppress("user1@example.com", "user2@example.com", "user9999@example.com")
    lone.suppress("user2@example.com", op=REMOVE)
    lone.campaign(7, people(5), suppressed_position=1)
    counts = lone.wait_done(lone.offer(7))
    assert states(lone) == ["SENT", "SUPPRESSED", "SENT", "SENT", "SENT"]
    assert counts.suppressed == 1


def test_who_is_suppressed_while_the_lease_runs_is_not_mailed(sink: StartSink, lone_sender: StartLone) -> None:
    """Rows claimed but not sent are stopped before the next write."""
    relay = sink(keep=True)
    lone = lone_sender(relay)
    lone.campaign(7, people(40))
    number = lone.offer(7, gated=True)
    lone.wait(lambda: lone.grants.read(ROW, 0)[3] >= 8, "8 wanted")
    spend(lone, number, 10)
    lone.suppress(*people(40)[20:])
    spend(lone, number, 20)
    counts = lone.wait_done(number)
    assert (counts.sent, counts.suppressed) == (20, 20)
    assert {m["rcpt_to"] for m in relay.messages()} == set(people(20))


def test_a_gated_lease_spends_grants_and_nothing_else(sink: StartSink, lone_sender: StartLone) -> None:
    """No grant, no message; n granted, n sent; what lapses is returned; what is wanted is said."""
    relay = sink()
    lone = lone_sender(relay)
    lone.campaign(7, people(100))
    number = lone.offer(7, gated=True)
    lone.wait(lambda: lone.grants.read(ROW, 0)[3] >= 8, "8 wanted")
    assert relay.counts()["messages"] == 0
    lone.grant(number, 5, first_ns=time.monotonic_ns() - 10**9)  # lapsed long ago
    lone.wait(lambda: lone.grants.read(ROW, 0)[2] == 5, "5 returned")
    assert relay.counts()["messages"] == 0
    spend(lone, number, 7)
    lone.wait(lambda: lone.counts(7).sent == 7, "7 sent")
    tenant, spent, returned, wanted, _ = lone.grants.read(ROW, 0)
    assert (tenant, spent, spent + returned) == (number, 7, lone.grants.granted(ROW, 0))
    assert wanted > spent + returned
    assert 0 < lone.grants.spent_ns(ROW, 0) <= time.monotonic_ns()
    lone.order(number, RETURN, gated=True)
    counts = lone.wait_done(number)
    assert (counts.sent, counts.pending) == (7, 93)


def spend(lone: LoneSender, number: int, n: int, gap_ns: int = 0) -> None:
    """Grant until n messages in all have left; what lapses on a busy machine is granted again."""

    def settled() -> bool:
        _, spent, returned, _, _ = lone.grants.read(ROW, 0)
        return spent + returned == lone.grants.granted(ROW, 0)

    while (left := n - lone.grants.read(ROW, 0)[1]) > 0:
        lone.grant(number, left, gap_ns=gap_ns)
        lone.wait(settled, "all grants spent or returned")


def test_a_slice_with_steps_is_never_ahead_of_its_times(sink: StartSink, lone_sender: StartLone) -> None:
    """The k-th message of a slice leaves at first + k steps or later, by the sender's own trace."""
    lone = lone_sender(sink(), settings={"engine": {"trace": True}})
    lone.campaign(7, people(20))
    number = lone.offer(7, gated=True)
    lone.wait(lambda: lone.grants.read(ROW, 0)[3] >= 8, "8 wanted")
    first_ns, step_ns = time.monotonic_ns() + 20_000_000, 20_000_000
    lone.grant(number, 20, first_ns=first_ns, step_ns=step_ns)
    assert lone.wait_done(number).sent == 20
    times = [at for at, _ in trace(lone)]
    assert all(at >= first_ns + k * step_ns for k, at in enumerate(times))


def test_a_gap_is_kept_between_any_two_attempts(sink: StartSink, lone_sender: StartLone) -> None:
    """With gap_ns no two attempts are closer, across slices and leases of one campaign."""
    lone = lone_sender(sink(), settings={"engine": {"trace": True}})
    lone.campaign(7, people(60))
    number = lone.offer(7, gated=True)
    lone.wait(lambda: lone.grants.read(ROW, 0)[3] >= 8, "8 wanted")
    gap_ns = 1_000_000
    spend(lone, number, 60, gap_ns)
    assert lone.wait_done(number).sent == 60
    times = [at for at, _ in trace(lone)]
    assert len(times) == 60
    assert min(np.diff(times)) >= gap_ns


def trace(lone: LoneSender) -> list[tuple[int, int]]:
    (path,) = lone.state.trace.iterdir()
    assert path.name == f"7.sender-0.{lone.start_id}"
    return list(struct.iter_unpack("<qq", path.read_bytes()))


def test_return_stops_at_once_and_the_next_lease_does_the_rest(sink: StartSink, lone_sender: StartLone) -> None:
    """RETURN: claimed rows go back, nothing is in flight, nobody is mailed twice by the lease that follows."""
    relay = sink("--latency", "5", keep=True)
    lone = lone_sender(relay)
    lone.campaign(7, people(2000))
    number = lone.offer(7)
    lone.wait(lambda: lone.counts(7).sent > 50, "some sent")
    lone.order(number, RETURN)
    counts = lone.wait_done(number)
    assert 50 < counts.sent < 2000
    assert counts.sent + counts.pending == 2000
    assert lone.wait_done(lone.offer(7)).sent == 2000
    assert max(Counter(m["rcpt_to"] for m in relay.messages()).values()) == 1


def test_cancel_leaves_everybody_sent_or_cancelled(sink: StartSink, lone_sender: StartLone) -> None:
    """CANCEL: what is in flight concludes, everybody else is CANCELLED, the deferred too."""
    lone = lone_sender(sink("--latency", "20", "--defer", "0.2"))
    lone.campaign(7, people(2000))
    number = lone.offer(7)
    lone.wait(lambda: lone.counts(7).sent > 50 and lone.counts(7).deferred, "some sent, some deferred")
    lone.order(number, CANCEL)
    counts = lone.wait_done(number)
    assert counts.sent + counts.cancelled == 2000
    assert counts.cancelled > 100


def test_a_suspect_shard_goes_by_one_row_at_a_time(sink: StartSink, lone_sender: StartLone) -> None:
    """rows_max = 1: one row is claimed or in flight (a count that straddles two of them may see both)."""
    lone = lone_sender(sink())
    lone.campaign(7, people(30))
    number = lone.offer(7, rows_max=1)
    most = 0
    while lone.table.acknowledged(ROW, 0)[1] != number:
        most = max(most, lone.counts(7).in_flight)
    assert lone.wait_done(number).sent == 30
    assert 1 <= most <= 2
    assert lone.counters.at_hand(ROW, 0, number) is None, "what has been composed is nobody's death"


def test_a_relay_that_is_down_costs_no_recipient_and_is_used_when_it_comes(
    sink: StartSink,
    lone_sender: StartLone,
) -> None:
    """While nobody answers, rows stay unclaimed, the arena says why; when the relay comes, all are sent."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lone = lone_sender(SimpleNamespace(host="127.0.0.1", port=port))
    lone.campaign(7, people(50))
    number = lone.offer(7)
    lone.wait(lambda: lone.relays.use(ROW, 0)[FAILURES] >= 2, "two failures")
    lone.wait(lambda: lone.counts(7).pending == 50, "everybody pending")
    assert any("`default`" in fault.text and "connect" in fault.text for fault in lone.faults.read())
    sink(port=port)
    counts = lone.wait_done(number)
    assert (counts.sent, counts.attempts) == (50, 50)


def test_a_sender_without_allowance_opens_nothing(sink: StartSink, lone_sender: StartLone) -> None:
    """Allowance 0: no connection, no claim; when it is given, the work is done."""
    relay = sink()
    lone = lone_sender(relay)
    lone.relays.allow(ROW, 0, 0, 1, 0)
    lone.campaign(7, people(5))
    number = lone.offer(7)
    lone.wait_message("lease.taken")
    time.sleep(0.2)  # there is nothing to wait for: nothing may happen
    assert relay.counts()["sessions"] == 0
    assert lone.counts(7).pending == 5
    lone.relays.allow(ROW, 0, 1, 1, 0)
    assert lone.wait_done(number).sent == 5
    assert relay.counts()["sessions_most"] == 1


def test_a_connection_carries_no_more_messages_than_allowed(sink: StartSink, lone_sender: StartLone) -> None:
    """messages_per_connection = 7: a hundred messages need at least fifteen sessions."""
    relay = sink()
    lone = lone_sender(relay, messages_per_connection=7, connections=2)
    lone.campaign(7, people(100))
    assert lone.wait_done(lone.offer(7)).sent == 100
    counts = relay.counts()
    assert counts["sessions"] >= 15
    assert counts["sessions_most"] <= 2


def test_two_campaigns_share_one_relay(sink: StartSink, lone_sender: StartLone) -> None:
    """Leases take turns: the second campaign does not wait for the end of the first."""
    relay = sink("--latency", "3", keep=True)
    lone = lone_sender(relay, connections=2)
    lone.campaign(7, people(400, "a"))
    lone.campaign(8, people(100, "b"))
    first = lone.offer(7)
    second = lone.offer(8, slot=1)
    assert lone.wait_done(second).sent == 100
    assert lone.wait_done(first).sent == 400
    order = "".join(m["rcpt_to"][0] for m in relay.messages())
    assert order.rindex("b") < len(order) - 150


def test_a_lock_step_relay_is_served_too(sink: StartSink, lone_sender: StartLone) -> None:
    """Without PIPELINING every command waits for its reply."""
    lone = lone_sender(sink("--no-pipelining", "--bounce", "0.1"))
    lone.campaign(7, people(300))
    counts = lone.wait_done(lone.offer(7))
    assert counts.sent + counts.bounced == 300
    assert lone.relays.use(ROW, 0).mode == 1


@pytest.mark.parametrize("tls", ["required", "implicit"])
def test_postfix_is_served_over_tls_with_a_login(postfix: RunningPostfix, lone_sender: StartLone, tls: str) -> None:
    """STARTTLS or implicit TLS, AUTH, PIPELINING, refusals: a real relay takes a shard."""
    port = postfix.port if tls == "required" else postfix.tls_port
    login = {"username": postfix.username, "password": postfix.password}
    lone = lone_sender(SimpleNamespace(host=postfix.host, port=port), tls=tls, ca_file=str(postfix.ca_file), **login)
    lone.campaign(7, [*people(60), "bounce@example.com", "defer@example.com", *people(60, "more")])
    counts = lone.wait_done(lone.offer(7))
    assert (counts.sent, counts.bounced, counts.deferred) == (120, 1, 1), lone.faults.read()
    assert lone.relays.use(ROW, 0).mode == 3


def test_messages_larger_than_the_sockets_buffers_arrive(postfix: RunningPostfix, lone_sender: StartLone) -> None:
    """A big message fills the socket: nothing is written to a transport that still holds bytes, and all arrive."""
    lone = lone_sender(SimpleNamespace(host=postfix.host, port=postfix.port))
    lone.campaign(7, people(20), text="x" * 70 + "\n" + ("y" * 76 + "\n") * 20_000)
    assert lone.wait_done(lone.offer(7)).sent == 20


def test_drain_gives_the_leases_back_and_says_bye(sink: StartSink, lone_sender: StartLone) -> None:
    """A polite end: in flight concludes, ledgers are closed, connections say QUIT, exit status 0."""
    relay = sink("--latency", "5")
    lone = lone_sender(relay)
    lone.campaign(7, people(3000))
    number = lone.offer(7)
    lone.wait(lambda: lone.counts(7).sent > 20, "some sent")
    lone.tell(type="drain", now=False)
    lone.wait_message("bye")
    lone.child.process.join(10)
    assert lone.child.exit_status == 0
    ledger = lone.ledger(7)
    counts = ledger.summary()
    ledger.close()
    assert counts is not None
    assert lone.table.acknowledged(ROW, 0) == (number, number)
    assert counts.sent + counts.pending == 3000
    assert relay.counts()["sessions_open"] == 0


def test_drain_now_waits_for_no_reply(sink: StartSink, lone_sender: StartLone) -> None:
    """now: connections are dropped; what was in flight is uncertain (to be resent) or pending, never lost count of."""
    lone = lone_sender(sink("--latency", "8000"), connections=3)
    lone.campaign(7, people(100))
    lone.offer(7)
    lone.wait(lambda: lone.counts(7).by_state[States.SENDING] >= 1, "some in flight")
    began = time.monotonic()
    lone.tell(type="drain", now=True)
    lone.wait_message("bye")
    lone.child.process.join(10)
    assert time.monotonic() - began < 7
    counts = lone.counts(7)
    assert counts.in_flight == 0
    assert counts.pending + counts.deferred == 100


def test_sigterm_drains_and_exits_with_0(sink: StartSink, lone_sender: StartLone) -> None:
    """The first SIGTERM asks."""
    lone = lone_sender(sink("--latency", "5"))
    lone.campaign(7, people(1000))
    lone.offer(7)
    lone.wait(lambda: lone.counts(7).sent > 20, "some sent")
    lone.child.signal(signal.SIGTERM)
    lone.child.process.join(10)
    assert lone.child.exit_status == 0
    counts = lone.counts(7)
    assert counts.sent + counts.pending == 1000


def test_a_killed_sender_leaves_at_most_two_messages_a_connection_in_doubt(
    sink: StartSink,
    lone_sender: StartLone,
) -> None:
    """kill -9: SENDING rows are at most connections x 2, and every message the relay took is SENT or SENDING."""
    relay = sink("--latency", "2", keep=True)
    lone = lone_sender(relay, connections=4)
    lone.campaign(7, people(5000))
    lone.offer(7)
    lone.wait(lambda: lone.counts(7).sent > 200, "some sent")
    lone.child.kill()
    lone.child.process.join(10)
    rows = lone.rows(7)
    sending = {n for n, row in enumerate(rows) if row.state is States.SENDING}
    assert len(sending) <= 4 * 2
    taken = Counter(m["rcpt_to"] for m in relay.messages())
    addresses = lone.addresses(7)
    assert max(taken.values()) == 1
    assert all(rows[addresses.index(a)].state in (States.SENT, States.SENDING) for a in taken)


def test_a_lease_on_a_foreign_file_is_handed_back_with_the_reason(sink: StartSink, lone_sender: StartLone) -> None:
    """A ledger of another campaign is refused; the sender goes on with the next lease."""
    lone = lone_sender(sink())
    lone.campaign(7, people(3))
    lone.campaign(8, people(3))
    number = lone.offer(7)
    lone.wait_done(number)
    shutil.copy(lone.state.shard(8, 1), lone.state.shard(7, 1))
    failed = lone.offer(7)
    message = lone.wait_message("lease.failed")
    assert message["number"] == failed
    assert "campaign is 8, expected 7" in message["reason"]
    assert lone.wait_done(lone.offer(8, slot=1)).sent == 3


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to tamper with fdatasync")


@contextmanager
def tampered(lone: LoneSender, tmp_path: Path, what: str) -> Iterator[Path]:
    """The sender with its fdatasync tampered with; the path is strace's record of it."""
    out, said = tmp_path / "strace.out", tmp_path / "strace.err"
    command = ["strace", "-f", "-ttt", "-T", "-o", str(out), "-e", "trace=fdatasync", "-e", f"inject=fdatasync:{what}"]
    with said.open("w") as log:
        tracer = subprocess.Popen([*command, "-p", str(lone.child.pid)], stderr=log)
    try:
        lone.wait(lambda: "attached" in said.read_text(), "strace attached")
        yield out
    finally:
        tracer.terminate()
        tracer.wait()


@needs_strace
def test_no_byte_leaves_before_the_claim_is_on_the_disk(
    sink: StartSink, lone_sender: StartLone, tmp_path: Path
) -> None:
    """With a disk that takes half a second, the first message comes after the first sync has returned."""
    relay = sink(keep=True)
    lone = lone_sender(relay)
    lone.campaign(7, people(5))
    with tampered(lone, tmp_path, "delay_enter=500000") as record:
        number = lone.offer(7)
        lone.wait(lambda: lone.counts(7).sent == 5, "all sent")
    first = next(line for line in record.read_text().splitlines() if "fdatasync" in line)
    began_s = float(first.split()[1])
    assert min(message["time"] for message in relay.messages()) >= began_s + 0.5
    assert lone.wait_done(number).sent == 5


@needs_strace
def test_a_failed_sync_ends_the_lease_and_sends_nothing_that_is_not_durable(
    sink: StartSink, lone_sender: StartLone, tmp_path: Path
) -> None:
    """fdatasync says EIO: no row claimed after it is sent, the lease is handed back unclosed, the reason is told."""
    relay = sink("--latency", "2", keep=True)
    lone = lone_sender(relay)
    lone.campaign(7, people(5000))
    number = lone.offer(7)
    lone.wait(lambda: lone.counts(7).sent > 100, "some sent")
    with tampered(lone, tmp_path, "error=EIO"):
        message = lone.wait_message("lease.failed")
    assert message["number"] == number
    assert "Input/output error" in message["reason"]
    counts = lone.counts(7)
    assert counts.in_flight == 0
    assert counts.sent < 5000
    assert len(relay.messages()) == counts.sent
    ledger = lone.ledger(7)
    assert ledger.summary() is None
    ledger.close()
