"""Requests that cross each other, and what is not there when it is wanted: each once kept a campaign from its end."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

from broker.contract.errors import EcmError
from ctl.client import Client
from tests.fixtures.instance import StartInstance, arrivals
from tests.fixtures.sink import StartSink
from tests.fixtures.until import until

PEOPLE = 2000


def test_a_draft_that_many_launch_at_once_is_launched_once(sink: StartSink, instance: StartInstance) -> None:
    """One wins, the others hear of the state it has; everybody gets one message."""
    relay = sink("--latency", "5", keep=True)
    engine = instance(relay)
    engine.start()
    campaign = engine.ask("campaign.create", engine.content("news", PEOPLE))["campaign"]
    barrier, answers = threading.Barrier(4), []

    def launch() -> None:
        with Client(engine.state) as client:
            barrier.wait()
            try:
                client.request("campaign.launch", {"campaign": campaign, "checked": True}, within_s=30)
                answers.append("launched")
            except EcmError as error:
                answers.append(error.code)

    threads = [threading.Thread(target=launch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == ["launched", "wrong_state", "wrong_state", "wrong_state"]
    assert engine.finished(campaign)["sent"] == PEOPLE
    assert set(arrivals(relay).values()) == {1}
    engine.stop()


def test_a_relay_that_takes_one_connection_serves_a_campaign_of_many_shards(
    sink: StartSink, instance: StartInstance
) -> None:
    """The second sender may open none, so no shard is given to it, where it would lie for ever."""
    relay = sink()
    engine = instance(f'[relay.default]\nhost = "127.0.0.1"\nport = {relay.port}\ntls = "none"\nconnections = 1\n')
    engine.start()
    campaign = engine.send("news", 20_000)
    assert engine.finished(campaign)["sent"] == 20_000
    assert relay.counts()["sessions"] >= 1
    engine.stop()


def test_a_relay_that_comes_back_when_no_lease_is_out_is_noticed(sink: StartSink, instance: StartInstance) -> None:
    """Paused while the relay was down: after the resume senders try it, or it would stay down for ever."""
    relay = sink("--latency", "20")
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", PEOPLE)
    engine.until(campaign, lambda now: now["sent"] > 200)
    relay.kill()
    engine.until(campaign, lambda now: now["state"] == "waiting")
    engine.ask("campaign.pause", {"campaign": campaign})
    engine.ask("campaign.resume", {"campaign": campaign})
    engine.until(campaign, lambda now: now["state"] == "waiting")
    sink("--port", str(relay.port))
    assert engine.finished(campaign)["sent"] == PEOPLE
    engine.stop()


def test_a_campaign_whose_relay_left_the_settings_waits_and_can_be_cancelled(
    sink: StartSink, instance: StartInstance
) -> None:
    """It keeps neither the engine from starting nor the other campaigns from going on."""
    relay = sink("--latency", "50")
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", PEOPLE)
    engine.until(campaign, lambda now: now["sent"] > 50)
    engine.stop()
    settings = engine.directory / "ecm.toml"
    settings.write_text(settings.read_text().replace("[relay.default]", "[relay.other]"))
    engine.start()
    account = engine.until(campaign, lambda now: now["state"] == "waiting")
    assert account["reason"]["code"] == "unknown_relay"
    other = engine.ask("campaign.send", {**engine.content("more", 20, keys='relay = "other"'), "checked": True})
    assert engine.finished(other["campaign"])["sent"] == 20
    engine.ask("campaign.cancel", {"campaign": campaign})
    account = engine.finished(campaign)
    assert (account["state"], account["sent"] + account["cancelled"]) == ("cancelled", PEOPLE)
    engine.stop()


def test_an_unreadable_ledger_keeps_its_own_campaign_only(sink: StartSink, instance: StartInstance) -> None:
    """The engine starts, other campaigns go on, and when the file is there again so does this one."""
    relay = sink("--latency", "20")
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", 500)
    engine.until(campaign, lambda now: now["sent"] > 50)
    engine.stop()
    ledger = next(engine.state.campaign(campaign).glob("*.ledger"))
    ledger.rename(ledger.with_suffix(".away"))
    engine.start()
    assert "no such file" in str(engine.account(campaign)["reason"]).lower()
    other = engine.send("more", 20)
    assert engine.finished(other)["sent"] == 20
    ledger.with_suffix(".away").rename(ledger)
    assert engine.finished(campaign)["sent"] == 500
    engine.stop()


def test_a_hurried_stop_kills_who_does_not_end_and_says_so_once(sink: StartSink, instance: StartInstance) -> None:
    """Also when it overtakes an unhurried one: who was asked to hurry is given its three seconds from then on."""
    engine = instance(sink())
    engine.start()
    (stuck, other), (broker,) = engine.pids("sender"), engine.pids("broker")
    os.kill(stuck, signal.SIGSTOP)
    os.kill(broker, signal.SIGTERM)
    until(lambda: not psutil.pid_exists(other), what="the end of the other sender")
    began = time.monotonic()
    engine.stop("--now")
    assert time.monotonic() - began > 2
    assert engine.log().count("did not end in time") == 1
