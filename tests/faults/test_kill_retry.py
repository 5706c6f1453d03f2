"""kill -9 of the broker, or of everything, while people are retried: all of it happens, or nothing has.

The moments are chosen at random; ECM_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator

import pytest

from broker.contract.errors import EcmError
from ctl.client import Client
from tests.fixtures.instance import Instance, StartInstance, arrivals, watching
from tests.fixtures.sink import StartSink

SHARDS = 8  # the first ones of a campaign hold 1,000 people each
PEOPLE = SHARDS * 1000
ROUNDS = 4


@pytest.fixture
def chance() -> Iterator[random.Random]:
    """Random numbers; the seed is printed if the test fails."""
    seed = int(os.environ.get("ECM_SEED") or random.randrange(10**9))
    print(f"ECM_SEED={seed}")
    return random.Random(seed)


def ask(engine: Instance, campaign: int, answers: list[object]) -> None:
    """A retry that may lose its engine."""
    try:
        with Client(engine.state) as client:
            answers.append(client.request("campaign.retry", {"campaign": campaign}, key=os.urandom(8).hex()))
    except EcmError as error:
        answers.append(error.code)


@pytest.mark.parametrize("victims", ["broker", "everything"])
def test_a_retry_that_is_killed_is_done_or_was_never_asked(
    sink: StartSink, instance: StartInstance, chance: random.Random, victims: str
) -> None:
    """At the next start the campaign is finished as it was, or it runs and tries everybody again; nobody gets two."""
    relay = sink("--defer", "1", keep=True)  # everybody is put off once
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", PEOPLE, keys="give_up_s = 1\n[breaker]\ndeferred = 0")
    before = engine.finished(campaign)
    assert before["failed"] == PEOPLE
    with watching(engine, campaign):
        for _ in range(ROUNDS):
            answers: list[object] = []
            asking = threading.Thread(target=ask, args=(engine, campaign, answers))
            asking.start()
            time.sleep(chance.random() * 0.1)  # not to see something, but to meet different moments
            engine.kill_broker() if victims == "broker" else engine.kill_all()
            asking.join(60)
            engine.audit(campaign)
            engine.start()
            now = engine.account(campaign)
            if now["attempts"] > PEOPLE or now["state"] != "finished":
                break
            assert now == before, "neither as it was nor tried again"
            assert answers == ["no_engine"], "what was answered has been decided"
        engine.ask("campaign.retry", {"campaign": campaign})
        account = engine.finished(campaign)
    assert (account["sent"] + account["uncertain"], account["failed"]) == (PEOPLE, 0)
    arrived = arrivals(relay)
    assert len(arrived) == PEOPLE
    twice = {address for address, count in arrived.items() if count > 1}
    assert twice <= {address for address, row in engine.rows(campaign).items() if row.sticky}
    engine.stop()
