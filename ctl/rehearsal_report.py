"""What a rehearsal found, for a person and as one document. Pure but for printing and the messages it keeps.

Invariants
- The document has every key in every case; unknown numbers are null.
- What was true here and what will hold in earnest are told apart: the rate reached is this machine's against a server
  that costs nothing, the limits are the campaign's and the relays'.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctl import output

__all__ = ["TROUBLES", "Found", "Troubles", "keep_messages", "kind_of", "print_found"]

SHOWN = 10  # kinds of trouble that a person is shown an example of; the document has more
TROUBLES = 100  # people, rows and kinds named in the document, at most
SIZES = ("size_least", "size_median", "size_greatest")
COUNTED = ("sent", "bounced", "failed", "deferred", "uncertain", "suppressed", "rejected", "duplicates")


@dataclass(slots=True)
class Example:
    """The first whom a kind of trouble met, and how many it met."""

    row: dict[str, Any]
    people: int = 1


@dataclass(slots=True)
class Troubles:
    """Rows about those who got nothing: the first TROUBLES of them, and an example of each kind, of any number of them.

    people  how many were added
    """

    people: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[tuple[str, ...], Example] = field(default_factory=dict)

    def add(self, kind: tuple[str, ...], row: dict[str, Any]) -> None:
        """One more. Memory stays bounded: beyond TROUBLES kinds a new one is only counted."""
        self.people += 1
        if len(self.rows) < TROUBLES:
            self.rows.append(row)
        if kind in self.examples:
            self.examples[kind].people += 1
        elif len(self.examples) < TROUBLES:
            self.examples[kind] = Example(row)

    def most(self) -> list[Example]:
        """An example of each kind, the most frequent first."""
        return sorted(self.examples.values(), key=lambda example: -example.people)


def kind_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What people have in common of whom a relay said the same: their address in the reply makes no difference."""
    said = re.sub(re.escape(row["email"]), "", _why(row), flags=re.IGNORECASE)
    return (row["state"], said)


@dataclass(slots=True)
class Found:
    """Everything a rehearsal found.

    campaign      the campaign object of the rehearsal;  relay  counts of the rehearsal server
    fresh         attempts and seconds when everybody had been attempted once: waits for retries tell nothing of speed
    least_s       the least time the limits allow, and the one that makes it so; None = none binds
    troubles      rows of `campaign export` of people who did not get it
    rejects       {"line", "reason", "row"} of rows that hold no recipient
    kept          directory with messages and rejects, None if there were neither;  messages  paths in it
    suppressions  where they are from, in a line;  errors  what a person should look at
    """

    campaign: Mapping[str, Any]
    relay: Mapping[str, int]
    fresh: tuple[int, float] | None
    least_s: float
    limit: str | None
    kept: Path | None
    suppressions: str
    warnings: list[str]
    troubles: Troubles = field(default_factory=Troubles)
    rejects: Troubles = field(default_factory=Troubles)
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
            "failing": self.troubles.rows,
            "kinds": [{**example.row, "people": example.people} for example in self.troubles.most()],
            "rejects": self.rejects.rows,
            "kept": None if self.kept is None else str(self.kept),
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
    _print_troubles(found)
    if found.messages:
        output.line(f"messages  {', '.join(path.name for path in found.messages)} in {found.kept}")
    for error in found.errors:
        output.line(f"error  {error}")


def _print_troubles(found: Found) -> None:
    """An example of each kind of trouble, and where to find the rest."""
    shown = found.troubles.most()[:SHOWN]
    for example in shown:
        row = example.row
        output.line(f"{row['state']}  {row['email']}{_others(example)}: {_why(row)}")
    left = found.troubles.people - sum(example.people for example in shown)
    if left:
        output.line(f"and {left:,} more who would not get it: `--json` has more of them")
    shown = found.rejects.most()[:SHOWN]
    for example in shown:
        row = example.row
        output.line(f"rejected  line {row['line']}{_others(example)}: {row['reason']}: {row['row']}")
    if found.rejects.people > len(shown):
        output.line(f"all {found.rejects.people:,} rejected rows are in {found.kept}/rejects.csv")


def _others(example: Example) -> str:
    return f" and {example.people - 1:,} more" if example.people > 1 else ""


def _why(row: Mapping[str, Any]) -> str:
    status = " ".join(str(row[name]) for name in ("code", "enhanced") if row[name])
    silent = "the relay did not answer" if row["attempts"] else "it could not be composed"
    return str(row["reply"] or status or silent)
