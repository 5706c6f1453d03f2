"""A disk that is full: said in one line with exit 1, nothing half made, and the same command works with room again."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from broker.contract.errors import EcmError
from shm.files.ledger import States
from tests.fixtures.instance import Instance, StartInstance, arrivals, watching
from tests.fixtures.sink import StartSink
from tests.fixtures.small_disk import SmallDisk

MEGABYTE = 1 << 20
STOP_NOW_S = 15.0
MakeDisk = Callable[[int], SmallDisk]


def on_disk(engine: Instance, disk: SmallDisk) -> Instance:
    """The same instance, its state directory on that disk."""
    engine.state.root.symlink_to(disk.path)
    return engine


def test_a_snapshot_on_a_full_disk_leaves_nothing_half_made(
    small_disk: MakeDisk, sink: StartSink, instance: StartInstance
) -> None:
    """disk_full, exit 1, a draft again, its room given back; with room the same request is sent to everybody."""
    relay, disk = sink(), small_disk(64)
    engine = on_disk(instance(relay), disk)
    engine.start()
    engine.finished(engine.send("before", 100))  # what every campaign adds to databases and logs is there by now
    disk.fill(leave=2 * MEGABYTE)
    before = disk.used
    request = {**engine.content("news", 60_000), "checked": True}
    with pytest.raises(EcmError) as refused:
        engine.ask("campaign.send", request)
    assert (refused.value.code, refused.value.exit) == ("disk_full", 1)
    assert refused.value.hint
    draft = engine.ask("campaign.show", {"campaign": "news"})
    assert (draft["state"], draft["reason"]["code"]) == ("draft", "disk_full")
    assert not [path for path in engine.state.campaign(draft["id"]).rglob("*") if path.name != "rejects.csv"]
    assert disk.used - before < MEGABYTE
    disk.empty()
    campaign = engine.ask("campaign.send", request)["campaign"]
    assert campaign == draft["id"]
    assert engine.finished(campaign)["sent"] == 60_000
    engine.stop()


def test_a_campaign_under_way_goes_on_while_the_disk_is_full(
    small_disk: MakeDisk, sink: StartSink, instance: StartInstance
) -> None:
    """Ledgers were allocated in full at the launch: no mail stops, and the account stays complete."""
    relay, disk = sink("--latency", "20", keep=True), small_disk(64)
    engine = on_disk(instance(relay), disk)
    engine.start()
    campaign = engine.send("news", 2000)
    with watching(engine, campaign):
        engine.until(campaign, lambda now: now["sent"] > 200)
        disk.fill(leave=0)
        engine.until(campaign, lambda now: now["sent"] > 1500)
        disk.empty()
        account = engine.finished(campaign)
    assert account["sent"] == 2000
    assert set(arrivals(relay).values()) == {1}
    engine.stop()


def test_a_campaign_waits_for_room_to_note_a_refusal(
    small_disk: MakeDisk, sink: StartSink, instance: StartInstance
) -> None:
    """The words of a refusal need room: the campaign waits and says so, and with room everybody is accounted for.

    `ctl stop --now` meanwhile does not wait for room.
    """
    relay, disk = sink("--latency", "20", keep=True), small_disk(64)
    engine = on_disk(instance(relay), disk)
    engine.start()
    people = [f"{who}+{number}@news.example.org" for number in range(600) for who in ("anna", "body-550-5.1.1")]
    campaign = engine.send("news", people, keys="breaker = { bounced = 0 }")
    with watching(engine, campaign):
        engine.until(campaign, lambda now: now["bounced"] > 100)
        disk.fill(leave=0)
        waiting = engine.until(campaign, lambda now: now["state"] == "waiting")
        assert waiting["reason"]["code"] == "disk"
        assert "No space left on device" in waiting["reason"]["message"]
        began = time.monotonic()
        engine.stop("--now")
        assert time.monotonic() - began < STOP_NOW_S
        disk.empty()
        engine.start()
        account = engine.finished(campaign)
    assert account["sent"] + account["bounced"] + account["uncertain"] == len(people)
    rows = engine.rows(campaign)
    assert {address for address, row in rows.items() if row.state is States.SENT} <= set(arrivals(relay))
    assert all(row.sticky for row in rows.values() if row.state is States.UNCERTAIN)
    engine.stop()


def test_a_breaker_trips_whatever_the_disk_takes(
    small_disk: MakeDisk, sink: StartSink, instance: StartInstance
) -> None:
    """That a campaign is paused cannot be kept on a full disk: it is paused all the same, and the engine goes on."""
    relay, disk = sink("--latency", "20"), small_disk(64)
    engine = on_disk(instance(relay), disk)
    engine.start()
    people = [f"{who}+{number}@news.example.org" for number in range(1000) for who in ("anna", "bounce")]
    rate = "per_second = 500\nburst = 1"  # slower than the breaker, which looks four times a second
    campaign = engine.send("news", people, keys="breaker = { bounced = 0.1, after = 300 }", rate=rate)
    engine.until(campaign, lambda now: now["sent"] > 10)
    disk.fill(leave=0)
    paused = engine.until(campaign, lambda now: now["state"] == "paused" or now["attempts"] > 600)
    assert (paused["state"], paused["reason"]["code"]) == ("paused", "breaker")
    disk.empty()
    engine.ask("campaign.cancel", {"campaign": campaign})
    assert engine.finished(campaign)["cancelled"] > 1000
    engine.stop()


def test_an_engine_does_not_start_on_a_full_disk(
    small_disk: MakeDisk, sink: StartSink, instance: StartInstance
) -> None:
    """`ctl start`: exit 1, one clear line, no traceback, nothing left running; it starts once there is room."""
    disk = small_disk(16)
    engine = on_disk(instance(sink()), disk)
    disk.fill(leave=0)
    failed = engine.ctl("start")
    assert (failed.status, failed.stdout) == (1, "")
    assert failed.stderr.startswith("error: ")
    assert "No space left on device" in failed.stderr
    assert len(failed.stderr.splitlines()) <= 4
    assert engine.pid is None
    disk.empty()
    engine.start()
    engine.stop()
