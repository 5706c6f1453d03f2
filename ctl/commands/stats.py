"""`ctl stats`: what is going on, in numbers."""

import time
from collections.abc import Iterator
from typing import Any

import click

from ctl import output
from ctl.client import Client
from ctl.options import common, options

__all__ = ["command"]


@click.command("stats", help="What is going on, in numbers.")
@common
@click.option("--watch", is_flag=True, help="again every second, until interrupted")
def command(watch: bool) -> None:
    """Numbers of the engine."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        while True:
            stats = client.request("engine.stats")
            if chosen.json:
                output.document(stats)
            else:
                _print(stats)
            if not watch:
                return
            time.sleep(1)


def _print(stats: dict[str, Any]) -> None:
    engine, rate, latency = stats["engine"], stats["per_second"], stats["latency_ms"]
    output.line(f"engine {engine['id']}  {engine['health']}  {stats['time']}")
    output.line()
    output.pairs(stats["totals"])
    output.line(f"sent/s {output.number(rate['sent'])}  attempted/s {output.number(rate['attempted'])}")
    if latency["count"]:
        output.line("latency ms  " + "  ".join(f"{n} {output.number(latency[n])}" for n in ("p50", "p95", "p99")))
    output.line()
    output.table(
        ["actor", "pid", "state", "cpu", "memory MB", "restarts"],
        [[f"{a['kind']} {a['index']}", str(a["pid"] or "-"), a["state"], _share(a["cpu"]), _megabytes(a["rss"]),
          a["restarts"]] for a in stats["actors"]],
        right=["pid", "cpu", "memory MB", "restarts"],
    )  # fmt: skip
    if stats["campaigns"]:
        output.line()
        output.table(
            ["campaign", "state", "audience", "sent", "deferred", "bounced", "per second"],
            [[c["name"], _state(c), c["audience"], c["sent"], c["deferred"], c["bounced"], c["per_second"]]
             for c in stats["campaigns"]],
            right=["audience", "sent", "deferred", "bounced", "per second"],
        )  # fmt: skip
    if stats["relays"]:
        output.line()
        output.table(
            ["relay", "state", "mode", "connections", "limit"],
            [[r["name"], r["state"], r["mode"], r["connections"], r["connections_limit"]] for r in stats["relays"]],
            right=["connections", "limit"],
        )  # fmt: skip
    if reasons := list(_reasons(stats)):
        output.line()
        for reason in reasons:
            output.line(reason)
    output.line()
    output.table(
        ["resource", "used", "budget", "limit"],
        [[name, r["used"], r["budget"], r["limit"]] for name, r in stats["resources"].items() if name != "share"],
        right=["used", "budget", "limit"],
    )


def _reasons(stats: dict[str, Any]) -> Iterator[str]:
    """A line for each campaign and relay that stands still and says why; what several say is said once by the relay."""
    told = set()
    for relay in stats["relays"]:
        if relay["reason"]:
            told.add(relay["reason"])
            yield f"relay {relay['name']} is {relay['state']}: {relay['reason']}"
    for campaign in stats["campaigns"]:
        reason = campaign["reason"]
        if not reason or campaign["state"] not in ("waiting", "paused", "draft"):
            continue
        words = "as that relay says" if reason["message"] in told else reason["message"]
        yield f"campaign {campaign['name']} is {campaign['state']}: {words}"


def _state(campaign: dict[str, Any]) -> str:
    """A campaign's state; of one that only waits for retries, that."""
    if output.only_retries(campaign):
        return f"{campaign['state']}: {output.retries_left(campaign, time.time())}"
    return str(campaign["state"])


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}"


def _megabytes(value: int | None) -> str | None:
    return None if value is None else f"{value / 1e6:,.0f}"
