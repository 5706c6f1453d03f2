"""What commands print, and nothing else prints (`live` draws the moving parts).

stdout is data, stderr is talk. With `--json`, stdout holds one JSON document (one a line where it streams) and
nothing else, and an error is the last line of stderr. Tables, columns and colours appear on a terminal only; elsewhere
values are separated by two spaces, so that they can be cut and compared.
"""

import io
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from broker.contract.errors import EcmError

__all__ = [
    "ACCOUNT_NAMES", "account", "document", "duration", "fail", "interactive", "line", "moment", "number",
    "only_retries", "pairs", "plain", "points", "prepare", "retries_left", "say", "table",
]  # fmt: skip

ACCOUNT_NAMES = (
    "rows", "rejected", "duplicates", "audience", "sent", "bounced", "failed", "suppressed", "cancelled", "uncertain",
    "deferred", "pending", "in_flight", "attempts", "resent",
)  # fmt: skip

_CONTROL = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if n not in (9, 10)}


def prepare() -> None:
    """Let nothing that a file or a relay says be a reason to fail: what the terminal cannot show is written out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard() -> None:
    """Throw away what could not be written, so that the interpreter does not fail over it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def interactive() -> bool:
    """Whether a person sits there, who can be asked."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def document(value: Any) -> None:
    """One JSON document on a line of its own."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    _write(json.dumps(value, ensure_ascii=not utf8))


def plain(text: str) -> str:
    """Text without control characters: what a relay or a file says must not steer the terminal."""
    return text.translate(_CONTROL)


def line(text: str = "") -> None:
    """A line of data."""
    _write(plain(text))


def _write(text: str) -> None:
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has seen enough (`| head`). What is still buffered must not become an error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def say(text: str) -> None:
    """A line of talk."""
    sys.stderr.write(plain(text) + "\n")
    sys.stderr.flush()


def fail(error: EcmError, *, as_json: bool) -> None:
    """An error, as text or as the last line of stderr in JSON.

    The text names files as a person in this directory would; JSON leaves them as they came.
    """
    if as_json:
        say(json.dumps({"error": error.to_map()}))
        return
    here = os.path.join(os.getcwd(), "") if error.file and os.path.isabs(error.file) else None  # noqa: PTH109,PTH117
    if here is not None and str(error.file).startswith(here):
        error.file = str(error.file)[len(here) :]
    say(error.text())


def number(value: Any) -> str:
    """A number for a person: thousands separated, `unknown` where there is none."""
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def duration(seconds: float) -> str:
    """A time for a person: `0.8 s`, `4 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, lower, lower_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // lower
            return f"{whole // unit} {name}" + (f" {rest} {lower_name}" if rest else "")
    return f"{whole} s"


def pairs(values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
    """One line for each: name, then value; values aligned on a terminal."""
    items = list(values.items() if isinstance(values, Mapping) else values)
    width = max((len(name) for name, _ in items), default=0) if sys.stdout.isatty() else 0
    for name, value in items:
        line(f"{name:<{width}}  {number(value)}")


def points(values: Iterable[tuple[str, str]]) -> None:
    """Lines of talk: name, then text, aligned."""
    items = list(values)
    width = max((len(name) for name, _ in items), default=0)
    for name, text in items:
        say(f"{name:<{width}}  {text}")


def account(campaign: Mapping[str, Any]) -> None:
    """The account of a campaign: one line for each count, name then number."""
    shown: list[tuple[str, Any]] = [("campaign", f"{campaign['name']} (id {campaign['id']})")]
    shown += [("state", campaign["state"]), *((name, campaign[name]) for name in ACCOUNT_NAMES)]
    if campaign.get("rejects_file") and campaign.get("rejected"):
        shown.append(("rejects_file", campaign["rejects_file"]))
    if campaign.get("seconds"):
        shown.append(("seconds", f"{campaign['seconds']:,.3f}"))
    if campaign.get("per_second"):
        shown.append(("per_second", campaign["per_second"]))
    if campaign.get("next_attempt"):
        shown.append(("next_attempt", campaign["next_attempt"]))
    if only_retries(campaign):
        shown.append(("retries", retries_left(campaign, time.time())))
    if campaign.get("limit"):
        shown.append(("limit", f"{campaign['limit']['name']} = {number(campaign['limit']['value'])}"))
    if campaign.get("reason"):
        shown.append(("reason", campaign["reason"]["message"]))
        if campaign["reason"].get("hint"):
            shown.append(("hint", campaign["reason"]["hint"]))
    pairs(shown)


def only_retries(campaign: Mapping[str, Any]) -> bool:
    """Whether everybody was attempted and some wait for another attempt."""
    return bool(campaign["state"] == "running" and campaign["deferred"]) and not (
        campaign["pending"] or campaign["in_flight"]
    )


def retries_left(campaign: Mapping[str, Any], now_s: float) -> str:
    """`3 retries left, next at 10:28:55 UTC (in 42 s)`. `now_s`: seconds since the epoch."""
    left = campaign["deferred"]
    text = "1 retry left" if left == 1 else f"{left:,} retries left"
    at = campaign.get("next_attempt")
    if not at:
        return text
    from datetime import datetime

    left_s = datetime.fromisoformat(at).timestamp() - now_s
    return (
        f"{text}, next at {moment(at, now_s)} (in {duration(left_s)})" if left_s > 0.05 else f"{text}, next is due now"
    )


def moment(at: str, now_s: float) -> str:
    """A time of the protocol for a person: `10:28:55 UTC`, with its date if that is another one than now."""
    today = time.strftime("%Y-%m-%d", time.gmtime(now_s))
    day = "" if at[:10] == today else f"{at[:10]} "
    return f"{day}{at[11:19]} UTC"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """A table. `right`: names of the columns that hold numbers, aligned to the right."""
    texts = [[plain(number(cell)) if cell is not None else "-" for cell in row] for row in rows]
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
