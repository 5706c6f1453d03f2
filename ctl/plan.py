"""What a campaign is about to do, in a few lines: the question that `ctl send` asks on a terminal.

Estimates only; what the engine will really keep is the law of its rates. Loads pydantic, to read the campaign as the
engine does.
"""

import math
from collections.abc import Mapping
from typing import Any

from broker.contract.campaign import CampaignSpec, parse_campaign
from broker.contract.place import place
from ctl import output

__all__ = ["binding_limit", "least_seconds", "plan"]

WINDOWS = (("per_minute", 60), ("per_hour", 3600), ("per_day", 86400))
BURST_S = 0.05  # a bucket without a depth of its own holds this much of its rate


def plan(args: Mapping[str, Any], checked: Mapping[str, Any], relays: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines about a campaign that passed its checks: (name, text).

    args     of the request that would send it;  checked  the answer of `campaign.check`;  relays  of `relay.list`
    """
    spec = parse_campaign(args["text"], args["file"], args["attached"], args.get("recipients"))
    audience = checked["audience"] - checked["suppressed"]
    known = {relay["name"]: relay for relay in relays["relays"]}
    servers = ", ".join(
        f"{name} ({place(known[name]['host'], known[name]['port'])})" for name in _weights(spec.relay, relays)
    )
    seconds, binding = binding_limit(spec, audience, relays)
    left_out = [f"{checked[name]:,} {name}" for name in ("rejected", "duplicates", "suppressed") if checked[name]]
    sender = f"{spec.from_name} <{spec.from_address}>" if spec.from_name else spec.from_address
    return [
        ("campaign", spec.name),
        ("audience", f"{audience:,} of {checked['rows']:,} rows" + (f" ({', '.join(left_out)})" if left_out else "")),
        ("relay", servers or spec.relay),
        ("from", sender),
        ("limit", binding or "none: as fast as machine and relay allow"),
        ("time", f"at least {output.duration(seconds)}" if binding else "unknown"),
    ]


def binding_limit(spec: CampaignSpec, audience: int, relays: Mapping[str, Any]) -> tuple[float, str | None]:
    """(the least time that the campaign's and its relays' limits let it take, the limit that makes it so long).

    audience  people who will get mail;  relays  of `relay.list`
    """
    known = {relay["name"]: relay for relay in relays["relays"]}
    weights = _weights(spec.relay, relays)
    limits = [("", audience, spec.rate.to_map())]
    limits += [
        (f"relay.{name}.", math.ceil(audience * weight / sum(weights.values())), known[name]["rate"])
        for name, weight in weights.items()
    ]
    return max(
        (least_seconds(rate, n, of) for of, n, rate in limits), key=lambda limit: (limit[0], limit[1] is not None)
    )


def _weights(name: str, relays: Mapping[str, Any]) -> dict[str, int]:
    """Relays and weights behind a campaign's relay: one relay, or a pool."""
    weights: dict[str, int] = relays["pools"].get(name, {})
    return {name: 1} if any(relay["name"] == name for relay in relays["relays"]) else weights


def least_seconds(rate: Mapping[str, Any], messages: int, owner: str = "") -> tuple[float, str | None]:
    """(the least time a [rate] lets so many messages take, the limit that makes it so long; None if it has none)."""
    found: list[tuple[float, str | None]] = [(0.0, None)]
    per_second = rate.get("per_second") or 0
    if per_second:
        depth = rate.get("burst") or max(1, math.ceil(per_second * BURST_S))
        found.append((max(0.0, (messages - depth) / per_second), _named(owner, "per_second", per_second)))
    for key, length_s in WINDOWS:
        if rate.get(key):
            found.append((float((messages - 1) // rate[key] * length_s), _named(owner, key, rate[key])))
    if rate.get("wait_ms"):
        found.append(((messages - 1) * rate["wait_ms"] / 1000, _named(owner, "wait_ms", rate["wait_ms"])))
    return max(found, key=lambda limit: (limit[0], limit[1] is not None))


def _named(owner: str, key: str, value: float) -> str:
    return f"{owner}rate.{key} = {value:,g}"
