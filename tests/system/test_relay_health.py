"""Relays that turn against us, on a running engine: tripped, probed and recovered; pools go on with those that work."""

from __future__ import annotations

import sqlite3
import time

from shm.files.ledger import States
from tests.fixtures.instance import Instance, StartInstance, arrivals, settings_for
from tests.fixtures.moody_relay import BLAME, MoodyRelay
from tests.fixtures.sink import StartSink
from tests.fixtures.until import until

QUICK = "[retry.sender]\nfirst_s = 1\nmax_s = 1\n[retry.other]\nfirst_s = 1\nmax_s = 1\n"
PATIENT = "[breaker]\nsender_fault = 0\ndeferred = 0\n"  # a campaign that does not stop by itself


def relay(engine: Instance, name: str) -> dict[str, object]:
    """What `ctl stats` says of a relay."""
    return next(each for each in engine.ask("engine.stats")["relays"] if each["name"] == name)


def test_a_relay_that_blames_us_trips_and_recovers_across_a_restart(moody: MoodyRelay, instance: StartInstance) -> None:
    """Its people wait and are charged nothing, the reason is its reply, and one connection tries it again later."""
    engine = instance(settings_for({"default": moody.port}, QUICK))
    engine.start()
    campaign = engine.send("news", 3000, rate=f"per_second = 400\n{PATIENT}")
    engine.until(campaign, lambda now: now["sent"] > 100)
    moody.blames = True
    waiting = engine.until(campaign, lambda now: now["state"] == "waiting" and now["in_flight"] == 0)
    assert waiting["reason"]["code"] == "relay_refused"
    assert BLAME in waiting["reason"]["message"]
    assert (waiting["bounced"], waiting["failed"]) == (0, 0)
    assert relay(engine, "default")["state"] == "tripped"
    assert BLAME in str(relay(engine, "default")["reason"])
    assert 'event="relay tripped"' in engine.log()
    tried = moody.blamed
    assert tried < 500, "it was left alone within a moment"
    until(lambda: moody.sessions_open == 0, what="all connections let go of")

    def kept() -> tuple[float, str] | None:
        found: tuple[float, str] | None = store.execute("SELECT tripped_until, reason FROM relays").fetchone()
        return found

    store = sqlite3.connect(engine.state.store_db)
    until_s, reason = until(kept, what="the trip being kept") or (0.0, "")
    assert BLAME in reason
    assert 0 < until_s - time.time() <= 30
    engine.stop()
    assert moody.blamed == tried, "nobody tried it before its time"
    with store:
        store.execute("UPDATE relays SET tripped_until = ?", (time.time() + 1.0,))
    store.close()
    moody.sessions_most = 0
    engine.start()
    assert relay(engine, "default")["state"] in ("tripped", "probing")
    until(lambda: moody.blamed > tried, what="a probe")
    until(lambda: relay(engine, "default")["state"] == "tripped", what="the failed probe")
    assert moody.sessions_most == 1, "one connection in all"
    moody.blames = False
    engine.stop()
    with sqlite3.connect(engine.state.store_db) as store:
        store.execute("UPDATE relays SET tripped_until = ?", (time.time() + 0.5,))
    store.close()
    engine.start()
    account = engine.finished(campaign, within_s=100)
    assert account["sent"] + account["resent"] >= 3000
    assert (account["bounced"], account["failed"], account["uncertain"]) == (0, 0, 0)
    until(lambda: relay(engine, "default")["state"] == "up", what="the relay being up")
    assert set(moody.taken) == set(engine.rows(campaign))
    engine.stop()


def test_a_pool_goes_on_with_the_relay_that_works(moody: MoodyRelay, sink: StartSink, instance: StartInstance) -> None:
    """The one that blames us loses its share at once; the campaign runs on and ends without it."""
    good = sink(keep=True)
    pool = "[pool.both]\nmoody = 1\ngood = 1\n"
    engine = instance(settings_for({"moody": moody.port, "good": good.port}, QUICK + pool))
    engine.start()
    campaign = engine.send("news", 2000, rate=f"per_second = 400\n{PATIENT}", keys='relay = "both"')
    engine.until(campaign, lambda now: now["sent"] > 200)
    moody.blames = True
    until(lambda: relay(engine, "moody")["state"] == "tripped", what="the trip")
    assert engine.account(campaign)["state"] == "running"
    account = engine.finished(campaign)
    assert account["sent"] == 2000
    arrived = arrivals(good)
    assert set(arrived) | set(moody.taken) == set(engine.rows(campaign))
    assert len(arrived) > 1000
    assert not set(arrived) & set(moody.taken)
    assert {row.state for row in engine.rows(campaign).values()} == {States.SENT}
    engine.stop()


def test_a_small_campaign_on_a_pool_keeps_its_weights(sink: StartSink, instance: StartInstance) -> None:
    """Three to one over 400 messages, within a few."""
    heavy, light = sink(keep=True), sink(keep=True)
    pool = "[pool.both]\nheavy = 3\nlight = 1\n"
    engine = instance(settings_for({"heavy": heavy.port, "light": light.port}, pool))
    engine.start()
    campaign = engine.send("news", 400, rate="per_second = 200", keys='relay = "both"')
    assert engine.finished(campaign)["sent"] == 400
    assert abs(sum(arrivals(heavy).values()) - 300) <= 16
    assert sum(arrivals(heavy).values()) + sum(arrivals(light).values()) == 400
    engine.stop()
