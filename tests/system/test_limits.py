"""Limits of whole campaigns: what really left, by the trace of every attempt, and what the sink saw.

The law: attempts in any t seconds <= burst + rate * t, wherever they begin; counts per minute likewise; a gap between
any two. The trace has the time of each attempt on the clock all processes share, so the check is exact; arrivals at
the sink are later by what the network and the machine take.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from tests.fixtures.instance import House, Instance, StartInstance, housing, watching
from tests.fixtures.sink import RunningSink, StartSink

LATE_S = 0.25  # how much later than another a message may be seen by the sink on a busy machine
TRACED = "[engine]\ntrace = true\n"
SLOW = '[relay.slow]\nhost = "127.0.0.1"\nport = {port}\ntls = "none"\nrate = { per_second = 300, burst = 30 }\n'

Times = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """An engine that traces, with a relay `slow` that takes 300 messages a second beside `default`."""
    with housing(tmp_path_factory.mktemp("sink"), more=TRACED + SLOW) as opened:
        yield opened


def attempts(engine: Instance, *campaigns: int) -> Times:
    """Times of all attempts of these campaigns together, in order: seconds on the monotonic clock."""
    paths = [path for campaign in campaigns for path in engine.state.trace.glob(f"{campaign}.*")]
    parts = [np.fromfile(path, np.int64).reshape(-1, 2)[:, 0] for path in paths]
    return np.sort(np.concatenate(parts)) / 1e9


def arrived(relay: RunningSink, name: str) -> Times:
    """Times at which the sink accepted the messages of a campaign, in order."""
    domain = f"@{name}.example.org"
    return np.sort([message["time"] for message in relay.messages() if message["rcpt_to"].endswith(domain)])


def excess(times: Times, rate: float, burst: float) -> float:
    """By how many messages the law is broken at worst; 0 or less: never."""
    number = np.arange(len(times))
    least = np.minimum.accumulate(number - rate * times)
    return float(np.max(number + 1 - rate * times - least) - burst)


def most_within(times: Times, seconds: float) -> int:
    """The most messages that any interval of this length holds."""
    return int(np.max(np.searchsorted(times, times + seconds, "left") - np.arange(len(times))))


def test_the_defaults_are_kept_to_the_millisecond(traced: House) -> None:
    """No [rate]: 100 a second, 200 at once, 1 ms between any two; over two senders, and as the sink sees it."""
    engine, relay = traced
    campaign = engine.send("defaults", 500, rate=None)
    account = engine.finished(campaign)
    times = attempts(engine, campaign)
    assert len(times) == account["sent"] == 500
    assert excess(times, 100, 200) <= 1e-6
    assert np.diff(times).min() >= 0.001
    assert 3.0 <= times[-1] - times[0] < 4.0
    seen = arrived(relay, "defaults")
    assert most_within(seen, 1.0) <= 200 + 100 * (1 + LATE_S)


def test_a_rate_is_reached_and_never_exceeded(traced: House) -> None:
    """1,000 a second over 5 seconds: at least 95 % of it, and not one message more than allowed at any time."""
    engine, relay = traced
    campaign = engine.send("thousand", 5000, rate="per_second = 1000")
    engine.finished(campaign)
    times = attempts(engine, campaign)
    burst = 50  # without one it is as deep as 50 ms of the rate
    assert excess(times, 1000, burst) <= 1e-6
    assert len(times) / (times[-1] - times[0]) >= 950
    assert excess(arrived(relay, "thousand"), 1000, burst) <= 1000 * LATE_S


def test_a_pause_hoards_nothing(traced: House) -> None:
    """Across a pause and a resume the same law holds: what was granted before is not used afterwards."""
    engine, _ = traced
    campaign = engine.send("paused", 1200, rate="per_second = 400\nburst = 20")
    for sent in (200, 600):
        engine.until(campaign, lambda now, sent=sent: now["sent"] > sent)
        engine.ask("campaign.pause", {"campaign": campaign})
        engine.until(campaign, lambda now: now["in_flight"] == 0)
        engine.ask("campaign.resume", {"campaign": campaign})
    engine.finished(campaign)
    times = attempts(engine, campaign)
    assert len(times) == 1200
    assert excess(times, 400, 20) <= 1e-6


def test_a_relay_has_its_limit_whoever_uses_it(traced: House) -> None:
    """Two campaigns through a relay that takes 300 a second: together they keep it, and share it."""
    engine, _ = traced
    names = ("left", "right")
    numbers = [engine.send(name, 800, keys='relay = "slow"', rate="per_second = 0") for name in names]
    engine.until(numbers[1], lambda now: now["sent"] > 20)
    before = [engine.account(number)["sent"] for number in numbers]
    engine.until(numbers[0], lambda now: now["sent"] > before[0] + 150)
    assert engine.account(numbers[1])["sent"] > before[1] + 50
    for number in numbers:
        engine.finished(number)
    times = attempts(engine, *numbers)
    assert len(times) == 1600
    assert excess(times, 300, 30) <= 1e-6


def test_a_killed_sender_breaks_no_limit(traced: House) -> None:
    """kill -9 of a sender under way: what it had not spent counts as spent; the sink never sees more than allowed."""
    engine, relay = traced
    campaign = engine.send("killed", 1500, rate="per_second = 500\nburst = 25")
    engine.until(campaign, lambda now: now["sent"] > 300)
    engine.kill(engine.pids("sender")[:1])
    engine.finished(campaign)
    assert excess(arrived(relay, "killed"), 500, 25) <= 500 * LATE_S


def test_a_minute_is_counted_across_restarts(sink: StartSink, instance: StartInstance) -> None:
    """After kill -9 of the broker, and after a stop, the messages of before still count in the minute."""
    relay = sink(keep=True)
    engine = instance(relay, TRACED)
    engine.start()
    campaign = engine.send("minute", 2000, rate="per_second = 100\nper_minute = 250")
    with watching(engine, campaign):
        engine.until(campaign, lambda now: now["sent"] > 60)
        engine.kill_broker()
        engine.start()
        engine.until(campaign, lambda now: now["sent"] > 150)
        engine.stop()
        engine.start()
        full = engine.until(campaign, lambda now: now["limit"] and now["limit"]["name"] == "rate.per_minute")
    assert full["limit"]["value"] == 250
    assert full["limit"]["until"] is not None
    engine.ask("campaign.cancel", {"campaign": campaign})
    engine.finished(campaign)
    times = attempts(engine, campaign)
    seen = arrived(relay, "minute")
    assert most_within(seen, 60 - LATE_S) <= 250
    assert most_within(times, 60) <= 250
    assert 200 <= len(seen) <= len(times)  # tokens that a killed broker had handed out may be lost, mail may not
    engine.stop()
