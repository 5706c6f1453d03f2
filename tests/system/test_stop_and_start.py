"""Stopping the engine in the middle of a campaign, and starting it again: nobody is lost and nobody mailed twice."""

from __future__ import annotations

import re

from tests.fixtures.instance import StartInstance, arrivals
from tests.fixtures.sink import StartSink

PEOPLE = 1500


def test_a_campaign_goes_on_after_a_stop_and_mails_everybody_once(sink: StartSink, instance: StartInstance) -> None:
    """Two stops in mid-campaign: each recipient gets exactly one message, and the files prove the account.

    A second start meanwhile is refused with the pid and the age of the engine that runs.
    """
    relay = sink("--latency", "20", keep=True)
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", PEOPLE)
    refused = engine.ctl("start")
    assert refused.status == 1
    assert re.search(rf"already runs on this state directory: pid {engine.pid}, started \d+ s ago\n", refused.stderr)
    for share in (0.1, 0.6):
        engine.until(campaign, lambda now, share=share: now["sent"] > share * PEOPLE)
        engine.stop()
        between = engine.audit(campaign)
        assert between["pending"] > 0
        assert between["in_flight"] == between["uncertain"] == between["resent"] == 0
        assert relay.counts()["messages"] == between["sent"]
        engine.start()
    account = engine.finished(campaign)
    assert (account["state"], account["sent"]) == ("finished", PEOPLE)
    assert arrivals(relay) == dict.fromkeys(engine.rows(campaign), 1)
    engine.stop()


def test_a_hurried_stop_loses_nobody(sink: StartSink, instance: StartInstance) -> None:
    """`ctl stop --now` drops what is in flight; after the next start all get their message, who was in flight twice."""
    relay = sink("--latency", "50", keep=True)
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", 600)
    engine.until(campaign, lambda now: now["sent"] > 100)
    engine.stop("--now")
    engine.start()
    account = engine.finished(campaign)
    arrived, rows = arrivals(relay), engine.rows(campaign)
    assert account["sent"] == 600
    assert set(arrived) == set(rows)
    twice = {address for address, count in arrived.items() if count > 1}
    assert twice <= {address for address, row in rows.items() if row.sticky}
    assert len(twice) <= 20 * 2
    engine.stop()
