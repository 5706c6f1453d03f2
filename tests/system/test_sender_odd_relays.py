"""A real sender process against relays that hang, hang up, ramble or refuse: nobody is charged, nobody lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from shm.files.ledger import States
from shm.live.relays import FAILURES, REFUSALS

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.lone_sender import StartLone
    from tests.fixtures.odd_relay import Habit, OddRelay

    StartOdd = Callable[[Habit], OddRelay]

pytest_plugins = ["tests.fixtures.lone_sender", "tests.fixtures.odd_relay"]

ROW = 1
PEOPLE = [f"user{number}@example.com" for number in range(10)]
SHORT = {"command": 0.3, "body": 0.3, "greeting": 0.3}


def test_a_relay_that_falls_silent_before_the_body_is_left_and_the_recipient_waits(
    odd_relay: StartOdd, lone_sender: StartLone
) -> None:
    """No answer to RCPT: deferred, tried at once on other connections, then in its turn; never in doubt."""
    relay = odd_relay(lambda _, verb: "silent" if verb == b"RCPT" else None)
    lone = lone_sender(relay, connections=1, timeouts=SHORT)
    lone.campaign(7, PEOPLE[:1])
    counts = lone.wait_done(lone.offer(7))
    assert (counts.deferred, counts.attempts, counts.resent) == (1, 3, 0)
    assert relay.connections == 3


def test_a_relay_that_falls_silent_after_the_body_leaves_the_recipient_in_doubt(
    odd_relay: StartOdd, lone_sender: StartLone
) -> None:
    """No answer to the dot: UNCERTAIN under hold."""
    relay = odd_relay(lambda _, verb: "silent" if verb == b"." else None)
    lone = lone_sender(relay, timeouts=SHORT)
    lone.campaign(7, PEOPLE[:2], uncertain="hold")
    counts = lone.wait_done(lone.offer(7))
    assert counts.uncertain == 2


def test_a_relay_that_hangs_up_on_everybody_costs_no_attempt_more_than_needed(
    odd_relay: StartOdd, lone_sender: StartLone
) -> None:
    """Closed before the greeting: openings back off, the rows stay PENDING, the arena tells."""
    relay = odd_relay(lambda _, verb: "hang up" if verb == b"CONNECT" else None)
    lone = lone_sender(relay)
    lone.campaign(7, PEOPLE)
    lone.offer(7)
    lone.wait(lambda: lone.relays.use(ROW, 0)[FAILURES] >= 3, "three failures")
    lone.wait(lambda: lone.counts(7).pending == len(PEOPLE), "everybody pending")
    assert relay.connections < 10
    assert any("closed the connection" in fault.text for fault in lone.faults.read())


def test_a_relay_that_is_too_busy_for_another_connection_is_served_on_the_ones_it_took(
    odd_relay: StartOdd, lone_sender: StartLone
) -> None:
    """421 to the second greeting: counted as a refusal; the first connection carries everything."""
    tried = threading.Event()

    def habit(number: int, verb: bytes) -> bytes | None:
        if verb == b"CONNECT" and number > 1:
            tried.set()
            return b"421 4.7.0 too many connections\r\n"
        if verb == b".":
            tried.wait(10)  # the only one is busy until another was tried
        return None

    relay = odd_relay(habit)
    lone = lone_sender(relay, connections=8)
    lone.campaign(7, [f"user{number}@example.com" for number in range(500)])
    counts = lone.wait_done(lone.offer(7))
    assert (counts.sent, counts.attempts) == (500, 500)
    assert tried.is_set(), "nobody tried to open another"
    assert lone.relays.use(ROW, 0)[REFUSALS] >= 1


def test_a_relay_that_answers_in_small_pieces_costs_no_delayed_acks(
    odd_relay: StartOdd, lone_sender: StartLone
) -> None:
    """Replies written one by one under Nagle's algorithm: 200 messages take far less than 200 x 40 ms."""
    lone = lone_sender(odd_relay(lambda *_: None), connections=1)
    lone.campaign(7, [f"user{number}@example.com" for number in range(200)])
    began = time.monotonic()
    assert lone.wait_done(lone.offer(7)).sent == 200
    assert time.monotonic() - began < 4


def test_a_relay_that_loses_step_is_spoken_to_in_lock_step(odd_relay: StartOdd, lone_sender: StartLone) -> None:
    """Rubbish instead of a reply: that connection is dropped, the next one waits for each reply, all are sent."""
    relay = odd_relay(lambda number, verb: b"what?\r\n" if number == 1 and verb == b"RCPT" else None)
    lone = lone_sender(relay, connections=1)
    lone.campaign(7, PEOPLE)
    counts = lone.wait_done(lone.offer(7))
    assert (counts.sent, counts.resent) == (10, 0)
    assert lone.relays.use(ROW, 0).mode == 1
    assert sorted(relay.taken) == sorted(address.encode() for address in PEOPLE)


def test_a_relay_that_says_goodbye_after_each_message_gets_them_all(
    odd_relay: StartOdd, lone_sender: StartLone
) -> None:
    """421 to every second MAIL: nothing is lost by it, each message arrives once."""
    seen: dict[int, int] = {}

    def habit(number: int, verb: bytes) -> bytes | None:
        if verb == b"MAIL":
            seen[number] = seen.get(number, 0) + 1
            if seen[number] == 2:
                return b"421 4.4.5 enough for now\r\n"
        return None

    relay = odd_relay(habit)
    lone = lone_sender(relay, connections=2)
    lone.campaign(7, PEOPLE, retry={"first_s": 1, "max_s": 1})
    counts = lone.wait_done(lone.offer(7))
    assert (counts.sent, counts.resent) == (10, 0)
    assert sorted(relay.taken) == sorted(address.encode() for address in PEOPLE)
    assert lone.relays.use(ROW, 0).close_count == 0, "seen once it is no habit"


def test_a_refused_login_is_the_relays_fault_and_is_told(odd_relay: StartOdd, lone_sender: StartLone) -> None:
    """535 to AUTH: no recipient is touched, the reason stands among the faults."""

    def habit(_: int, verb: bytes) -> bytes | None:
        if verb == b"EHLO":
            return b"250-odd.example.com\r\n250 AUTH PLAIN\r\n"
        return b"535 5.7.8 Authentication credentials invalid\r\n" if verb == b"AUTH" else None

    lone = lone_sender(odd_relay(habit), username="me", password="wrong")
    lone.campaign(7, PEOPLE)
    lone.offer(7)
    lone.wait(lambda: any("refused the login of me" in fault.text for fault in lone.faults.read()), "the fault")
    lone.wait(lambda: lone.counts(7).by_state[States.PENDING] == len(PEOPLE), "everybody pending")
