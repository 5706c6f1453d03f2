"""A whole engine and relays that greet and refuse in Latin-1, which SMTP does not allow and old relays do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.fixtures.instance import StartInstance, settings_for

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.odd_relay import Habit, OddRelay

    StartOdd = Callable[[Habit], OddRelay]

QUICK = "".join(f"[retry.{kind}]\nfirst_s = 1\nmax_s = 1\n" for kind in ("sender", "throttling", "other"))
pytest_plugins = ["tests.fixtures.odd_relay"]


def test_a_relay_that_greets_in_latin_1_is_sent_through(odd_relay: StartOdd, instance: StartInstance) -> None:
    """The campaign launches, everybody is sent to at the first attempt, no sender dies."""
    relay = odd_relay(lambda _, verb: b"220 m\xfcller.example ESMTP\r\n" if verb == b"CONNECT" else None)
    engine = instance(settings_for({"default": relay.port}))
    engine.start()
    senders = engine.pids("sender")
    campaign = engine.send("news", 20)
    account = engine.finished(campaign)
    assert (account["sent"], account["resent"]) == (20, 0)
    assert sorted(relay.taken) == sorted(address.encode() for address in engine.rows(campaign))
    assert engine.pids("sender") == senders
    engine.stop()


def test_a_relay_whose_421_is_latin_1_is_waited_for(odd_relay: StartOdd, instance: StartInstance) -> None:
    """In the middle of a campaign it refuses every connection: people wait, no sender dies; then they are sent to."""
    busy = False
    knocks = 0

    def habit(_: int, verb: bytes) -> bytes | None:
        nonlocal knocks
        if not busy or verb not in (b"CONNECT", b"MAIL"):
            return None
        knocks += verb == b"CONNECT"
        return b"421 4.3.2 m\xfcller ist besch\xe4ftigt\r\n"

    relay = odd_relay(habit)
    engine = instance(settings_for({"default": relay.port}, QUICK))
    engine.start()
    senders = engine.pids("sender")
    campaign = engine.send("news", 60, rate="per_second = 20")
    engine.until(campaign, lambda now: now["sent"] > 5)
    busy = True
    engine.until(campaign, lambda _: knocks >= 4)
    busy = False
    account = engine.finished(campaign, within_s=90)
    assert (account["sent"], account["failed"], account["bounced"]) == (60, 0, 0)
    assert engine.pids("sender") == senders
    engine.stop()
