"""What commands print, and nothing else prints (`live` draws the moving parts).

stdout is data, stderr is talk. With `--json`, stdout holds one JSON document (one a line where it streams) and
nothing else, and an error is the last line of stderr. Tables and colours appear on a terminal only; elsewhere the
same columns are separated by two spaces, so that they can be cut and compared.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from broker.contract.errors import EcmError

__all__ = ["ACCOUNT_NAMES", "account", "document", "fail", "line", "number", "pairs", "say", "table"]

ACCOUNT_NAMES = (
    "rows", "rejected", "duplicates", "audience", "sent", "bounced", "failed", "suppressed", "cancelled", "uncertain",
    "deferred", "pending", "in_flight", "attempts", "resent",
)  # fmt: skip


def document(value: Any) -> None:
    """One JSON document on a line of its own."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def line(text: str = "") -> None:
    """A line of data."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line of talk."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def fail(error: EcmError, *, as_json: bool) -> None:
    """An error, as text or as the last line of stderr in JSON."""
    if as_json:
        say(json.dumps({"error": error.to_map()}, ensure_ascii=False))
    else:
        say(error.text())


def number(value: Any) -> str:
    """A number for a person: thousands separated, `unknown` where there is none."""
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def pairs(values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
    """One line for each: name, then value, values aligned."""
    items = list(values.items() if isinstance(values, Mapping) else values)
    width = max((len(name) for name, _ in items), default=0)
    for name, value in items:
        line(f"{name:<{width}}  {number(value)}")


def account(campaign: Mapping[str, Any]) -> None:
    """The account of a campaign: one line for each count, name then number."""
    shown = [("campaign", f"{campaign['name']} (id {campaign['id']})"), ("state", campaign["state"])]
    pairs([*shown, *((name, campaign[name]) for name in ACCOUNT_NAMES)])
    if campaign.get("rejects_file") and campaign.get("rejected"):
        line(f"rejects     {campaign['rejects_file']}")
    if campaign.get("seconds"):
        line(f"seconds     {campaign['seconds']:,.3f}")
    if campaign.get("per_second"):
        line(f"per second  {number(campaign['per_second'])}")
    if campaign.get("reason"):
        reason = campaign["reason"]
        line(f"reason      {reason['message']}")
        if reason.get("hint"):
            line(f"hint        {reason['hint']}")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """A table. `right`: names of the columns that hold numbers, aligned to the right."""
    texts = [[number(cell) if cell is not None else "-" for cell in row] for row in rows]
    if sys.stdout.isatty():
        _drawn(columns, texts, right)
        return
    widths = [max(len(c), *(len(row[i]) for row in texts)) if texts else len(c) for i, c in enumerate(columns)]
    for row in (list(columns), *texts):
        cells = [
            f"{cell:>{w}}" if columns[i] in right else f"{cell:<{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        line("  ".join(cells).rstrip())


def _drawn(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)
