"""What `ctl send` tells before it asks."""

from __future__ import annotations

from typing import Any

import pytest

from ctl.plan import least_seconds, plan

TEXT = """
name = "news"
subject = "Hello"
from = "News <news@example.com>"
text = "message.txt"
relay = "{relay}"
[unsubscribe]
mailto = "unsubscribe@example.com"
{rate}
"""
NO_RATE = {"per_second": 0, "per_minute": 0, "per_hour": 0, "per_day": 0, "burst": None, "wait_ms": 0}
RELAYS: dict[str, Any] = {
    "relays": [
        {"name": "default", "host": "mx.example.com", "port": 587, "rate": NO_RATE},
        {"name": "slow", "host": "10.0.0.1", "port": 25, "rate": NO_RATE | {"per_second": 10}},
    ],
    "pools": {"main": {"default": 3, "slow": 1}},
}
CHECKED = {"rows": 20010, "rejected": 4, "duplicates": 6, "suppressed": 0, "audience": 20000}


def args(relay: str = "default", rate: str = "") -> dict[str, Any]:
    text = TEXT.format(relay=relay, rate=rate)
    return {"text": text, "file": "c.toml", "attached": {"message.txt": "Hello"}, "recipients": "/r.csv"}


@pytest.mark.parametrize(
    ("rate", "messages", "seconds", "name"),
    [
        ({}, 10**6, 0, None),
        ({"per_second": 100, "burst": 200}, 10_200, 100, "rate.per_second = 100"),
        ({"per_second": 10}, 11, 1, "rate.per_second = 10"),
        ({"per_minute": 5000}, 5000, 0, "rate.per_minute = 5,000"),
        ({"per_minute": 5000, "per_second": 1000}, 5001, 60, "rate.per_minute = 5,000"),
        ({"per_day": 1000}, 3000, 2 * 86400, "rate.per_day = 1,000"),
        ({"wait_ms": 100}, 11, 1, "rate.wait_ms = 100"),
    ],
)
def test_the_limit_that_takes_longest_binds(
    rate: dict[str, Any], messages: int, seconds: float, name: str | None
) -> None:
    """The least time is that of the slowest limit."""
    assert least_seconds(rate, messages) == (seconds, name)


def test_the_plan_shows_what_one_would_regret() -> None:
    """Audience, relay, sender, the limit with its time."""
    assert plan(args(), CHECKED, RELAYS) == [
        ("campaign", "news"),
        ("audience", "20,000 of 20,010 rows (4 rejected, 6 duplicates)"),
        ("relay", "default (mx.example.com:587)"),
        ("from", "News <news@example.com>"),
        ("limit", "rate.per_second = 100"),
        ("time", "at least 3 min 18 s"),
    ]


def test_a_relay_of_a_pool_may_bind() -> None:
    """A quarter of the messages goes through the slow one, at 10 a second."""
    lines = dict(plan(args("main", "[rate]\nper_second = 0"), CHECKED, RELAYS))
    assert lines["relay"] == "default (mx.example.com:587), slow (10.0.0.1:25)"
    assert lines["limit"] == "relay.slow.rate.per_second = 10"
    assert lines["time"] == "at least 8 min 20 s"


def test_without_limits_the_time_is_not_guessed() -> None:
    """Machine and relay decide."""
    lines = dict(plan(args(rate="[rate]\nper_second = 0"), CHECKED, RELAYS))
    assert (lines["limit"], lines["time"]) == ("none: as fast as machine and relay allow", "unknown")


def test_an_address_of_ipv6_stands_in_brackets() -> None:
    """What is an address and what a port can be told apart."""
    relays = {**RELAYS, "relays": [{**RELAYS["relays"][0], "host": "2001:db8::1"}]}
    assert ("relay", "default ([2001:db8::1]:587)") in plan(args(), CHECKED, relays)
