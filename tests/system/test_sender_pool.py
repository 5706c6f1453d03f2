"""A real sender's connections: as many as the relay takes, the broker allows and the process may have, and no more."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from shm.live.relays import ACCEPTED, CLOSE_COUNT, CONNECTIONS, FAILURES, REFUSALS, SLOWED, RelayState

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from collections.abc import Callable

    from tests.fixtures.lone_sender import StartLone
    from tests.fixtures.odd_relay import Habit, OddRelay
    from tests.fixtures.sink import StartSink

    StartOdd = Callable[[Habit], OddRelay]

pytest_plugins = ["tests.fixtures.lone_sender", "tests.fixtures.odd_relay", "tests.fixtures.sink"]

ROW = 1
SHORT = {"command": 0.5, "body": 0.5, "greeting": 0.5}


def people(count: int) -> list[str]:
    return [f"user{number}@example.com" for number in range(count)]


def test_a_relay_that_closes_silently_after_ten_messages_is_left_before_it_does(
    sink: StartSink, lone_sender: StartLone
) -> None:
    """No failure, nobody tried twice in doubt; from then on no connection carries more than ten."""
    relay = sink("--close-after", "10", "--no-chunking")
    lone = lone_sender(relay, connections=4)
    words = lone.relays.words(ROW, 0)
    lone.campaign(7, people(300))
    counts = lone.wait_done(lone.offer(7))
    assert (counts.sent, counts.resent, counts.uncertain) == (300, 0, 0)
    assert relay.counts()["messages"] == 300
    assert words[CLOSE_COUNT] == 0, "seen once it is no habit"
    assert words[FAILURES] == 0


def test_a_relay_that_refuses_the_eleventh_connection_is_served_on_ten(sink: StartSink, lone_sender: StartLone) -> None:
    """Everybody is sent to, on ten connections at most, and the relay is not knocked at again and again."""
    relay = sink("--max-connections", "10", "--rate", "1000", "--best-connections", "10")
    lone = lone_sender(relay, connections=100)
    words = lone.relays.words(ROW, 0)
    lone.campaign(7, people(4000))
    number = lone.offer(7)
    lone.wait(lambda: words[REFUSALS], "a refusal")
    lone.wait(lambda: words[CONNECTIONS] >= 8, "eight connections in use")
    counts = lone.wait_done(number)
    assert (counts.sent, counts.attempts) == (4000, 4000)
    assert words[REFUSALS] <= 30


def test_a_relay_that_hangs_slows_the_pool_and_the_rest_goes_through(
    odd_relay: StartOdd, lone_sender: StartLone
) -> None:
    """The first connection falls silent after a RCPT: told as slow; its recipient goes on another one."""
    relay = odd_relay(lambda number, verb: "silent" if number == 1 and verb == b"RCPT" else None)
    lone = lone_sender(relay, timeouts=SHORT)
    lone.campaign(7, people(50))
    counts = lone.wait_done(lone.offer(7))
    assert (counts.sent, counts.uncertain) == (50, 0)
    assert lone.relays.words(ROW, 0)[SLOWED] >= 1


def test_what_the_broker_allows_is_kept_to_while_running(sink: StartSink, lone_sender: StartLone) -> None:
    """Lowered: surplus connections leave. Tripped: all leave, nothing is sent. Probing: one. Up: the rest goes out."""
    relay = sink("--rate", "400", "--best-connections", "8", "--no-chunking")
    lone = lone_sender(relay, connections=8)
    words = lone.relays.words(ROW, 0)
    lone.campaign(7, people(1500))
    number = lone.offer(7)
    lone.wait(lambda: words[CONNECTIONS] >= 4, "four connections")
    lone.relays.allow(ROW, 0, 2, RelayState.UP, 0)
    lone.wait(lambda: words[CONNECTIONS] <= 2, "two connections")
    lone.relays.allow(ROW, 0, 8, RelayState.TRIPPED, 0)
    lone.wait(lambda: words[CONNECTIONS] == 0, "no connection")
    accepted = words[ACCEPTED]
    lone.relays.allow(ROW, 0, 8, RelayState.PROBING, 0)
    lone.wait(lambda: words[ACCEPTED] > accepted + 20, "the probe at work")
    assert words[CONNECTIONS] == 1
    lone.relays.allow(ROW, 0, 8, RelayState.UP, 0)
    counts = lone.wait_done(number)
    assert (counts.sent, counts.attempts) == (1500, 1500)
    assert relay.counts()["messages"] == 1500


def test_connections_stay_below_nine_tenths_of_the_descriptors(sink: StartSink, lone_sender: StartLone) -> None:
    """A far relay that would take 500: the process may have 100 files, and opens 90 at most."""
    relay = sink("--latency", "100", "--no-chunking")
    lone = lone_sender(relay, connections=500)
    pid = lone.child.pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (100, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))
    seen: list[int] = []
    most: list[int] = []

    def done() -> bool:
        seen.append(len(os.listdir(f"/proc/{pid}/fd")))
        most.append(lone.relays.words(ROW, 0)[CONNECTIONS])
        return lone.counts(7).sent == 3000

    lone.campaign(7, people(3000))
    lone.offer(7)
    lone.wait(done, "everybody sent to")
    assert 32 <= max(most) < 90
    assert max(seen) <= 95


def test_a_relay_that_bears_refusals_is_not_left_for_them(sink: StartSink, lone_sender: StartLone) -> None:
    """A fifth of 3,000 people refused, in windows: it proves its patience once, then connections stay."""
    relay = sink("--bounce", "0.2")
    lone = lone_sender(relay, connections=1)
    lone.campaign(7, people(3000))
    counts = lone.wait_done(lone.offer(7))
    assert counts.bounced > 400
    assert counts.sent + counts.bounced == counts.attempts == 3000
    assert relay.counts()["sessions"] <= 4
