"""A relay that goes away, or is not there: campaigns wait and say why, drafts stay drafts, and nobody is lost."""

from __future__ import annotations

import pytest

from broker.contract.errors import EcmError
from shm.files.ledger import States
from tests.fixtures.instance import Instance, StartInstance, arrivals, settings_for, watching
from tests.fixtures.peers import free_ports
from tests.fixtures.sink import StartSink
from tests.fixtures.until import until


def relay_state(engine: Instance) -> str:
    """State of the only relay."""
    return str(engine.ask("engine.stats")["relays"][0]["state"])


def test_a_campaign_waits_for_a_relay_that_went_away(sink: StartSink, instance: StartInstance) -> None:
    """Waiting with its reason while the relay is gone, going on by itself when it is back; each answer adds up."""
    first = sink("--latency", "20", keep=True)
    engine = instance(first)
    engine.start()
    campaign = engine.send("news", 2000)
    with watching(engine, campaign):
        engine.until(campaign, lambda now: now["sent"] > 300)
        first.stop()
        waiting = engine.until(campaign, lambda now: now["state"] == "waiting" and now["in_flight"] == 0)
        assert waiting["reason"]["code"] == "relay_unreachable"
        assert f"relay `default` (127.0.0.1:{first.port})" in waiting["reason"]["message"]
        assert waiting["reason"]["hint"]
        assert waiting["sent"] + waiting["pending"] + waiting["deferred"] == 2000
        assert engine.ask("engine.status")["engine"]["health"] == "degraded"
        assert relay_state(engine) == "tripped"
        second = sink(port=first.port, keep=True)
        account = engine.finished(campaign)
    assert (account["sent"], account["uncertain"]) == (2000, 0)
    until(lambda: relay_state(engine) == "up", what="the relay being called up again")
    arrived, rows = arrivals(first) + arrivals(second), engine.rows(campaign)
    assert set(arrived) == set(rows)
    assert {address for address, count in arrived.items() if count > 1} <= {a for a, row in rows.items() if row.sticky}
    engine.stop()


def test_a_waiting_campaign_can_be_stopped_started_and_cancelled(sink: StartSink, instance: StartInstance) -> None:
    """Without its relay a campaign survives a restart, waits on, and can be ended."""
    relay = sink("--latency", "20", keep=True)
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", 1000)
    engine.until(campaign, lambda now: now["sent"] > 100)
    relay.stop()
    engine.until(campaign, lambda now: now["state"] == "waiting")
    engine.stop()
    engine.start()
    engine.until(campaign, lambda now: now["state"] == "waiting" and now["in_flight"] == 0)
    engine.ask("campaign.cancel", {"campaign": campaign})
    account = engine.finished(campaign)
    assert account["state"] == "cancelled"
    states = [row.state for row in engine.rows(campaign).values()]
    assert set(states) <= {States.SENT, States.CANCELLED, States.UNCERTAIN}
    assert account["cancelled"] == states.count(States.CANCELLED) > 500
    engine.stop()


def test_a_campaign_is_not_launched_at_a_relay_that_is_not_there(sink: StartSink, instance: StartInstance) -> None:
    """Exit 1 with the relay's name and address, a draft again without files; the same request works once mended."""
    (port,) = free_ports(1)
    engine = instance(settings_for({"default": port}))
    engine.start()
    request = {**engine.content("news", 100), "checked": True}
    with pytest.raises(EcmError) as refused:
        engine.ask("campaign.send", request)
    assert (refused.value.code, refused.value.exit) == ("relay_unreachable", 1)
    assert refused.value.message == f"relay `default`: cannot connect to 127.0.0.1:{port}: Connection refused"
    draft = engine.ask("campaign.show", {"campaign": "news"})
    assert (draft["state"], draft["reason"]["code"]) == ("draft", "relay_unreachable")
    assert not list(engine.state.campaign(draft["id"]).glob("shard-*"))
    relay = sink(port=port, keep=True)
    campaign = engine.ask("campaign.send", request)["campaign"]
    assert campaign == draft["id"]
    assert engine.finished(campaign)["sent"] == 100
    assert set(arrivals(relay).values()) == {1}
    engine.stop()
