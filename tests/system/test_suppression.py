"""Who was suppressed is not mailed: before a launch, in the middle of a campaign, one by one and in millions."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.fixtures.instance import House, Instance, arrivals, watching
from tests.fixtures.until import until

IN_FLIGHT_MOST = 20 * 2
MANY = int(os.environ.get("ECM_SUPPRESSIONS") or 200_000)


def finished_job(engine: Instance, job: int, *, within_s: float = 120.0) -> dict[str, Any]:
    """Wait for a job's end; its result."""

    def ended() -> dict[str, Any] | None:
        shown = engine.ask("job.show", {"job": job})
        assert shown["state"] != "failed", shown
        return shown if shown["state"] == "done" else None

    return dict(until(ended, within_s=within_s, every_s=0.05, what="the end of a job")["result"])


def test_who_was_suppressed_before_the_launch_is_not_mailed(house: House) -> None:
    """Counted as suppressed from the beginning, however the address is written."""
    engine, relay = house
    people = [f"user{number}@before.example.org" for number in range(50)]
    engine.ask("suppress.add", {"addresses": [" User7@Before.Example.ORG", people[8]]})
    campaign = engine.send("before", people)
    account = engine.finished(campaign)
    assert (account["sent"], account["suppressed"]) == (48, 2)
    assert set(people) - set(arrivals(relay, "before")) == {people[7], people[8]}


def test_suppressing_people_stops_their_mail_within_a_second(house: House) -> None:
    """All who are left are suppressed in mid-campaign: it is over, and nobody but those in flight was mailed."""
    engine, relay = house
    people = [f"user{number}@during.example.org" for number in range(2000)]
    campaign = engine.send("during", people, rate="per_second = 200")
    with watching(engine, campaign):
        engine.until(campaign, lambda now: now["sent"] > 200)
        before = set(arrivals(relay, "during"))
        left = [address for address in people if address not in before]
        assert engine.ask("suppress.add", {"addresses": left, "reason": "unsubscribe"}) == {
            "added": len(left), "already": 0,
        }  # fmt: skip
        answered = time.time()
        account = engine.finished(campaign)
    times = {message["rcpt_to"]: message["time"] for message in relay.messages()}
    late = [address for address in left if times.get(address, 0.0) > answered]
    assert len(late) <= IN_FLIGHT_MOST
    assert all(times[address] < answered + 1.0 for address in late)
    mailed = set(arrivals(relay, "during"))
    assert account["sent"] == len(mailed)
    assert account["suppressed"] == len(people) - len(mailed) > 1500
    states = {address: row.state.name for address, row in engine.rows(campaign).items()}
    assert {states[address] for address in left if address not in mailed} == {"SUPPRESSED"}


def test_people_may_be_suppressed_while_the_campaign_is_paused(house: House) -> None:
    """Nobody holds its shards then: they are met at the next lease, and none of these people is mailed."""
    engine, relay = house
    campaign = engine.send("paused", 1500)
    engine.until(campaign, lambda now: now["sent"] > 200)
    engine.ask("campaign.pause", {"campaign": campaign})
    still = engine.until(campaign, lambda now: now["in_flight"] == 0)
    mailed = set(arrivals(relay, "paused"))
    assert len(mailed) == still["sent"]
    chosen = [f"user{number}@paused.example.org" for number in range(1490, 1500)]
    assert not mailed & set(chosen)
    engine.ask("suppress.add", {"addresses": chosen})
    engine.ask("campaign.resume", {"campaign": campaign})
    account = engine.finished(campaign)
    assert (account["sent"], account["suppressed"]) == (1490, 10)
    assert not set(arrivals(relay, "paused")) & set(chosen)


def test_many_suppressions_are_imported_without_stopping_a_sender(house: House, tmp_path: Path) -> None:
    """While a whole file is suppressed mail goes on flowing, and whoever of the campaign is in it is not mailed."""
    engine, relay = house
    file, people = tmp_path / "suppress.csv", max(3000, MANY // 100)
    mine = [f"user{number}@import.example.org" for number in range(people - 1000, people)]
    with file.open("w") as out:
        out.write("email\n")
        out.writelines(f"{address}\n" for address in mine)
        out.writelines(f"someone{number}@example.net\n" for number in range(MANY))
    senders = engine.pids("sender")
    campaign = engine.send("import", people, rate="per_second = 300")
    engine.until(campaign, lambda now: now["sent"] > 20)
    began = time.time()
    job = engine.ask("suppress.import", {"path": str(file)})["job"]
    result = finished_job(engine, job)
    ended = time.time()
    assert (result["rows"], result["added"]) == (MANY + 1000, MANY + 1000)
    account = engine.finished(campaign, within_s=120)
    arrived = {message["rcpt_to"]: message["time"] for message in relay.messages()}
    mailed = [address for address in mine if address in arrived]  # before their line was read
    assert account["suppressed"] == 1000 - len(mailed) > 300
    assert all(arrived[address] < ended + 1.0 for address in mailed)
    assert account["sent"] == people - account["suppressed"]
    assert engine.pids("sender") == senders
    times = np.sort([m["time"] for m in relay.messages() if m["rcpt_to"].endswith("@import.example.org")])
    meanwhile = times[(times > began) & (times < ended)]
    assert np.diff(meanwhile).max() < 1.0
    print(f"{MANY:,} suppressions in {ended - began:.1f} s, longest gap {np.diff(meanwhile).max() * 1000:.0f} ms")
