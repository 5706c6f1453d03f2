"""What a rehearsal found, for a person and as one document. Pure but for printing and the messages it keeps.

Invariants
- The document has every key in every case; unknown numbers are null.
- What was true here and what will hold in earnest are told apart: the rate reached is this machine's against a server
  that costs nothing, the limits are the campaign's and the relays'.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctl import output

__all__ = ["Found", "keep_messages", "print_found"]

SHOWN = 5  # of each kind of trouble, for a person; the document has more
SIZES = ("size_least", "size_median", "size_greatest")
COUNTED = ("sent", "bounced", "failed", "deferred", "uncertain", "suppressed", "rejected", "duplicates")


@dataclass(slots=True)
class Found:
    """Everything a rehearsal found.

    campaign      the campaign object of the rehearsal;  relay  counts of the rehearsal server
    fresh         attempts and seconds when everybody had been attempted once: waits for retries tell nothing of speed
    least_s       the least time the limits allow, and the one that makes it so; None = none binds
    troubles      rows of `campaign export` of people who did not get it;  rejects  lines of the rejects file
    kept          directory with messages and rejects;  messages  paths in it
    suppressions  where they are from, in a line;  errors  what a person should look at
    """

    campaign: Mapping[str, Any]
    relay: Mapping[str, int]
    fresh: tuple[int, float] | None
    least_s: float
    limit: str | None
    kept: Path
    suppressions: str
    warnings: list[str]
    troubles: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[str] = field(default_factory=list)
    messages: list[Path] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def mail(self) -> int:
        """People who will get mail: the audience without the suppressed."""
        return int(self.campaign["audience"] - self.campaign["suppressed"])

    @property
    def per_second(self) -> float | None:
        """Messages a second reached here."""
        return round(self.fresh[0] / self.fresh[1], 1) if self.fresh else None

    @property
    def seconds(self) -> float | None:
        """Time needed in earnest, at least: at this speed, or by the limits."""
        if self.per_second is None:
            return self.least_s or None
        return round(max(self.least_s, self.mail / self.per_second), 3)

    def document(self) -> dict[str, Any]:
        """The one document of `--json`."""
        sizes = {name.removeprefix("size_"): self.relay[name] or None for name in SIZES}
        return {
            "campaign": self.campaign,
            "per_second": self.per_second,
            "time_s": {"here": self.campaign["seconds"], "limits": round(self.least_s, 3), "least": self.seconds},
            "limit": self.limit,
            "size_bytes": sizes,
            "failing": self.troubles,
            "rejects": self.rejects,
            "kept": str(self.kept),
            "messages": [str(path) for path in self.messages],
            "suppressions": self.suppressions,
            "warnings": self.warnings,
            "errors": self.errors,
            "relay": self.relay,
        }


def keep_messages(ndjson: Path, kept: Path) -> list[Path]:
    """Write the messages that the sink kept as `message-N.eml`; returns their paths."""
    paths = []
    if ndjson.is_file():
        with ndjson.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                path = kept / f"message-{number}.eml"
                path.write_bytes(json.loads(line)["data"].encode("latin-1"))
                paths.append(path)
    return paths


def print_found(found: Found) -> None:
    """For a person."""
    campaign, relay = found.campaign, found.relay
    rate = found.per_second
    reached = "unknown" if rate is None else f"{rate:,.0f} messages a second"
    lines: list[tuple[str, Any]] = [
        ("rehearsal", f"{campaign['name']}: {found.mail:,} of {campaign['rows']:,} rows would be mailed"),
        *((name, campaign[name]) for name in COUNTED if campaign[name] or name == "sent"),
        ("reached_here", reached),
        ("limit", found.limit or "none: machine and relay decide"),
        ("time_needed", "unknown" if found.seconds is None else f"at least {output.duration(found.seconds)}"),
    ]
    if relay["messages"]:
        least, median, greatest = (f"{relay[name]:,}" for name in SIZES)
        lines.append(("size_bytes", f"{least} to {greatest}, half of them up to {median}"))
        lines.append(("second_copies", relay["duplicates"]))
    lines.append(("suppressions", found.suppressions))
    output.pairs(lines)
    for row in found.troubles[:SHOWN]:
        output.line(f"{row['state']}  {row['email']}: {_why(row)}")
    for text in found.rejects[:SHOWN]:
        output.line(f"rejected  {text}")
    left = max(0, len(found.troubles) - SHOWN) + max(0, campaign["rejected"] - SHOWN)
    if left:
        output.line(f"and {left:,} more: `--json`, and rejects.csv in {found.kept}")
    if found.messages:
        output.line(f"messages  {', '.join(path.name for path in found.messages)} in {found.kept}")
    for error in found.errors:
        output.line(f"error  {error}")


def _why(row: Mapping[str, Any]) -> str:
    status = " ".join(str(row[name]) for name in ("code", "enhanced") if row[name])
    return str(row["reply"] or status or "it could not be composed")
