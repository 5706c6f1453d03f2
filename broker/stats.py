"""What `ctl stats` and `ctl status` show: one map each, built from what the broker holds. Decides nothing.

The maps are the contract of the command line (keys are added, never renamed, within v 1).
"""

import time
from typing import TYPE_CHECKING, Any

from broker.contract.timefmt import rfc3339
from shm.live.histogram import percentiles, sum_rows

if TYPE_CHECKING:
    from broker.engine import Engine
    from broker.supervisor import Slot

__all__ = ["health", "stats_map", "status_map"]

ENDED_SHOWN_S = 3600.0  # campaigns that ended within the last hour are shown


def health(engine: "Engine") -> tuple[str, list[str]]:
    """(ok, degraded or draining; the reasons, one line each)."""
    if engine.stopping:
        return "draining", ["the engine is stopping"]
    reasons = []
    for slot in engine.supervisor.slots:
        state = engine.supervisor.state(slot)
        if state in ("hung", "dead") and slot.generation:  # one that is just starting is no fault
            reasons.append(f"{slot.name} is {state}")
    reasons += [f"relay {view.name} is {view.state}: {view.reason}" for view in engine.relays.views() if view.reason]
    for campaign in engine.campaigns.running.values():
        if campaign.state == "waiting" and campaign.reason:
            reasons.append(f"campaign {campaign.name} waits: {campaign.reason['message']}")
    return ("degraded", reasons) if reasons else ("ok", [])


def _engine_map(engine: "Engine", word: str) -> dict[str, Any]:
    return {
        "id": engine.start_id,
        "state_dir": str(engine.state.root),
        "version": engine.version,
        "started": rfc3339(engine.started_s),
        "health": word,
    }


def _actors(engine: "Engine") -> list[dict[str, Any]]:
    used = engine.sample.get("actors", {})
    broker: dict[str, Any] = {
        "kind": "broker", "index": 0, "pid": engine.pid, "state": "draining" if engine.stopping else "ready",
        "cpus": [], "cpu": None, "rss": None, "restarts": 0,
    }  # fmt: skip
    actors = [broker, *(_actor(engine, slot) for slot in engine.supervisor.slots)]
    for actor in actors:
        mine = used.get(actor["pid"]) or {}
        actor["cpu"], actor["rss"] = mine.get("cpu"), mine.get("rss")
    return actors


def _actor(engine: "Engine", slot: "Slot") -> dict[str, Any]:
    pid = slot.child.pid if slot.child else None
    state = engine.supervisor.state(slot)
    return {
        "kind": slot.kind, "index": slot.index, "pid": pid, "state": state, "cpus": list(slot.cpus),
        "cpu": None, "rss": None, "restarts": slot.restarts,
    }  # fmt: skip


def status_map(engine: "Engine") -> dict[str, Any]:
    """Health with its reasons, and how many campaigns are in which state."""
    word, reasons = health(engine)
    states: dict[str, int] = {}
    for campaign in engine.campaigns.running.values():
        states[campaign.state] = states.get(campaign.state, 0) + 1
    return {
        "v": 1,
        "engine": _engine_map(engine, word),
        "reasons": reasons,
        "uptime_s": round(time.monotonic() - engine.started_mono, 1),
        "senders": engine.sender_count,
        "settings": str(engine.settings.source) if engine.settings.source else None,
        "campaigns": states,
    }


async def stats_map(engine: "Engine") -> dict[str, Any]:
    """The document of `ctl stats --json`."""
    totals = engine.totals()
    sent, attempted = engine.rates_now()
    campaigns = await engine.campaigns.listing(limit=200, since_s=engine.clock.now_ns() / 1e9 - ENDED_SHOWN_S)
    counts = sum_rows(engine.tables.arena)
    p50, p95, p99 = percentiles(counts, [50, 95, 99])
    resources = engine.sample.get("resources") or {}
    names = ("cpu", "memory", "fds", "processes", "disk", "network")
    unknown = {"used": None, "limit": None, "budget": None}
    return {
        "v": 1,
        "time": rfc3339(engine.clock.now_ns() / 1e9),
        "engine": _engine_map(engine, health(engine)[0]),
        "actors": _actors(engine),
        "totals": totals,
        "per_second": {"sent": sent, "attempted": attempted},
        "campaigns": campaigns,
        "relays": [
            {"name": v.name, "state": v.state, "mode": v.mode, "connections": v.connections,
             "connections_limit": v.connections_limit, "reason": v.reason}
            for v in engine.relays.views()
        ],
        "resources": {"share": engine.settings.budget.share, **{n: resources.get(n, unknown) for n in names}},
        "latency_ms": {"count": int(counts.sum()), "p50": p50, "p95": p95, "p99": p99},
    }  # fmt: skip
