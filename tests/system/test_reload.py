"""`ctl reload` and SIGHUP on a running engine: relays come, change and go, and a file with a fault changes nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

from tests.fixtures.instance import Instance, StartInstance, arrivals, settings_for
from tests.fixtures.moody_relay import BLAME, MoodyRelay
from tests.fixtures.sink import StartSink
from tests.fixtures.until import until


def rewrite(engine: Instance, text: str) -> Path:
    """Write the settings file anew."""
    path = engine.directory / "ecm.toml"
    path.write_text(text)
    return path


def relays(engine: Instance) -> dict[str, str]:
    """State of each relay that is declared now."""
    return {relay["name"]: relay["state"] for relay in engine.ask("relay.list")["relays"]}


def test_a_campaign_whose_relay_vanishes_waits_and_goes_on_when_it_is_back(
    sink: StartSink, instance: StartInstance
) -> None:
    """With the reason and a way out; back at another port, the rest goes there, and everybody gets one message."""
    first, second = sink("--latency", "20", keep=True), sink(keep=True)
    engine = instance(first)
    engine.start()
    campaign = engine.send("news", 600, rate="per_second = 200")
    engine.until(campaign, lambda now: now["sent"] > 100)
    rewrite(engine, settings_for({"other": second.port}))
    answer = engine.ctl("reload").ok()
    assert answer.stderr == "reloaded: added relay.other; removed relay.default\n"
    waiting = engine.until(campaign, lambda now: now["state"] == "waiting" and now["in_flight"] == 0)
    assert waiting["reason"]["code"] == "unknown_relay"
    assert "default" in waiting["reason"]["message"]
    assert "ctl reload" in waiting["reason"]["hint"]
    assert relays(engine) == {"other": "up"}
    rewrite(engine, settings_for({"other": second.port, "default": second.port}))
    assert engine.ctl("reload", "--json").ok().json() == {
        "added": ["relay.default"], "changed": [], "removed": [], "restart_needed": [],
    }  # fmt: skip
    assert engine.finished(campaign)["sent"] == 600
    assert arrivals(second)
    assert set((arrivals(first) + arrivals(second)).values()) == {1}
    engine.stop()


def test_what_a_waiting_campaign_says_follows_what_it_waits_for(
    moody: MoodyRelay, sink: StartSink, instance: StartInstance
) -> None:
    """First the relay's words, with a time that runs; then, since that relay is gone, that; each since it is so."""
    engine = instance(settings_for({"default": moody.port}))
    engine.start()
    moody.blames = True
    campaign = engine.send("news", 60, keys="[breaker]\nsender_fault = 0\n")
    blamed = engine.until(campaign, lambda now: now["state"] == "waiting")["reason"]
    assert blamed["code"] == "relay_refused"
    assert BLAME in blamed["message"]
    counted = engine.until(campaign, lambda now: now["reason"]["hint"] != blamed["hint"])["reason"]
    assert {**counted, "hint": None} == {**blamed, "hint": None}, "only the time left is another one"
    assert f"campaign news waits: {blamed['message']}" in engine.ask("engine.status")["reasons"]
    lines = engine.ctl("stats").ok().stdout.splitlines()
    assert f"relay default is tripped: {blamed['message']}" in lines
    assert "campaign news is waiting: as that relay says" in lines
    other = sink()
    rewrite(engine, settings_for({"other": other.port}))
    engine.ctl("reload").ok()
    gone = engine.until(campaign, lambda now: now["reason"]["code"] == "unknown_relay")
    assert gone["state"] == "waiting"
    assert "default" in gone["reason"]["message"]
    assert gone["reason"]["since"] > blamed["since"]
    assert f"campaign news is waiting: {gone['reason']['message']}" in engine.ctl("stats").ok().stdout.splitlines()
    with sqlite3.connect(engine.state.store_db) as store:
        assert b"unknown_relay" in bytes(store.execute("SELECT reason FROM campaigns").fetchone()[0])
    store.close()
    rewrite(engine, settings_for({"default": other.port}))
    engine.ctl("reload").ok()
    assert engine.until(campaign, lambda now: now["state"] == "running")["reason"] is None
    engine.ask("campaign.cancel", {"campaign": campaign})
    engine.until(campaign, lambda now: now["finished"])
    engine.stop()


def test_a_relay_that_is_added_can_be_sent_through_at_once_also_by_a_sender_that_is_started_anew(
    sink: StartSink, instance: StartInstance
) -> None:
    """Relays keep their places whatever comes and goes; a sender that dies is born with all of them."""
    first, second = sink(keep=True), sink(keep=True)
    engine = instance(first)
    engine.start()
    engine.finished(engine.send("before", 20))
    rewrite(engine, settings_for({"added": second.port}, "[pool.default]\nadded = 1\n"))
    engine.ctl("reload").ok()
    assert engine.finished(engine.send("after", 50))["sent"] == 50
    engine.kill(engine.pids("sender")[:1])
    assert engine.finished(engine.send("again", 50))["sent"] == 50
    assert sum(arrivals(first).values()) == 20
    assert sum(arrivals(second).values()) == 100
    engine.stop()


def test_a_file_with_a_fault_changes_nothing(sink: StartSink, instance: StartInstance) -> None:
    """One error with its place, exit status 2, and the settings in force are those from before."""
    engine = instance(sink())
    engine.start()
    before = engine.ask("engine.config")
    text = (engine.directory / "ecm.toml").read_text()
    rewrite(engine, text.replace("[relay.default]", "[relay.renamed]") + "\n[retry]\nfirst_s = -1\n")
    answer = engine.ctl("reload")
    assert answer.status == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: ecm.toml:8:11: ")
    assert engine.ask("engine.config") == before
    assert relays(engine) == {"default": "up"}
    engine.stop()


def test_a_limit_of_a_relay_changes_under_a_campaign(sink: StartSink, instance: StartInstance) -> None:
    """A campaign without limits comes under one that its relay gets, and is free again without it."""
    relay = sink("--latency", "20", keep=True)
    engine = instance(relay)
    engine.start()
    plain = (engine.directory / "ecm.toml").read_text()
    campaign = engine.send("news", 20_000)
    engine.until(campaign, lambda now: now["sent"] > 50)
    rewrite(engine, plain + "rate = { per_second = 5 }\n")
    assert engine.ctl("reload", "--json").ok().json()["changed"] == ["relay.default"]
    bound = engine.until(campaign, lambda now: now["limit"] is not None)
    assert (bound["limit"]["name"], bound["limit"]["value"]) == ("relay.default.rate.per_second", 5)
    assert bound["sent"] < 20_000
    assert engine.state.windows("relay-default").exists()
    rewrite(engine, plain)
    engine.ctl("reload").ok()
    assert engine.finished(campaign)["sent"] == 20_000
    assert set(arrivals(relay).values()) == {1}
    engine.stop()


def test_what_needs_a_restart_is_named_and_a_signal_reloads_as_well(sink: StartSink, instance: StartInstance) -> None:
    """What can change does; the rest stays as it is until the next start."""
    relay = sink()
    engine = instance(relay)
    engine.start()
    text = (engine.directory / "ecm.toml").read_text()
    rewrite(engine, text + "connections = 7\n[ledger]\nsync_ms = 20\n[retry]\nfirst_s = 60\n")
    answer = engine.ctl("reload").ok()
    assert answer.stderr.splitlines()[1] == "warning: needs a restart: ledger.sync_ms"
    assert "relay.default" in answer.stderr
    assert "retry.first_s" in answer.stderr
    config = engine.ask("engine.config")
    assert (config["ledger"]["sync_ms"], config["retry"]["first_s"]) == (50, 60)
    assert engine.ask("engine.stats")["relays"][0]["connections_limit"] == 7
    rewrite(engine, text + "connections = 9\n")
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGHUP)
    until(lambda: engine.ask("engine.stats")["relays"][0]["connections_limit"] == 9, what="the reload by a signal")
    rewrite(engine, "[relay.default]\n")
    os.kill(engine.pid, signal.SIGHUP)
    until(lambda: 'event="settings not reloaded"' in engine.log(), what="the fault in the log")
    assert sqlite3.connect(engine.state.store_db).execute("SELECT count(*) FROM relays").fetchone() == (0,)
    engine.stop()
