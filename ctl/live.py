"""The moving parts: a bar on a terminal, a few lines of talk elsewhere. Both draw on stderr; stdout is for data.

`rich` is loaded for a bar only. What the lines say is made by pure functions.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ctl import output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ctl.follow import View

__all__ = ["Bar", "Talk", "campaign_lines", "job_line", "view"]

BAR_WIDTH = 28
REFRESHES_PER_SECOND = 8


@contextmanager
def view() -> Iterator["View"]:
    """The view that suits stderr; a bar is gone when the block ends."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Talk()
        return
    with Bar() as bar:
        yield bar


class Talk:
    """Lines: when a campaign begins to send, and when only retries remain."""

    def __init__(self) -> None:
        self._sending = False
        self._remaining = 0

    def campaign(self, campaign: Mapping[str, Any]) -> None:
        """Say what is new about a campaign, if anything is."""
        if campaign["state"] in ("preparing", "finished", "cancelled") or campaign["audience"] is None:
            return
        if not self._sending:
            self._sending = True
            output.say(f"campaign {campaign['name']} is {campaign['state']}: audience {campaign['audience']:,}")
        if output.only_retries(campaign) and campaign["deferred"] != self._remaining:
            self._remaining = campaign["deferred"]
            output.say(f"campaign {campaign['name']}: {output.retries_left(campaign, time.time())}")

    def job(self, progress: Mapping[str, Any]) -> None:
        """Say nothing: the result does."""

    def tell(self, text: str) -> None:
        """A line."""
        output.say(text)


class Bar:
    """A progress bar with a line of figures below it, drawn anew several times a second until `close`."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._share: float | None = None
        self._lines = ("", "")
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._live = Live(
            console=self._console, transient=True, get_renderable=self._render, refresh_per_second=REFRESHES_PER_SECOND
        )

    def __enter__(self) -> "Bar":
        self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.stop()

    def campaign(self, campaign: Mapping[str, Any]) -> None:
        """How a campaign stands now."""
        self._lines = campaign_lines(campaign, time.time())
        audience = campaign["audience"]
        if campaign["state"] == "preparing":
            progress = campaign.get("progress") or {}
            self._share = _part(progress.get("bytes"), progress.get("bytes_total"))
        else:
            self._share = _part(_concluded(campaign), audience)

    def job(self, progress: Mapping[str, Any]) -> None:
        """How far a job is."""
        self._lines = (job_line(progress), "")
        self._share = _part(progress.get("bytes"), progress.get("bytes_total"))

    def tell(self, text: str) -> None:
        """A line above the bar; it stays."""
        self._console.print(output.plain(text), soft_wrap=True)

    def _render(self) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        first, second = self._lines
        top = Table.grid(padding=(0, 2))
        total = 1.0 if self._share is not None else None  # None: a bar that only says that something goes on
        bar = ProgressBar(total=total, completed=self._share or 0.0, width=BAR_WIDTH, pulse=total is None)
        top.add_row(bar, Text(output.plain(first), no_wrap=True, overflow="ellipsis"))
        return Group(top, Text(output.plain(second), no_wrap=True, overflow="ellipsis")) if second else top


def campaign_lines(campaign: Mapping[str, Any], now_s: float) -> tuple[str, str]:
    """What stands beside the bar and below it. `now_s`: seconds since the epoch."""
    name, state = campaign["name"], campaign["state"]
    if state == "preparing":
        return f"{name}  {job_line(campaign.get('progress') or {})}", ""
    if campaign["audience"] is None:
        return f"{name}  {state}", ""
    first = f"{name}  {state}  sent {campaign['sent']:,} of {campaign['audience']:,}"
    if state == "running" and not output.only_retries(campaign):
        first += f"  {campaign['per_second'] or 0:,.0f}/s"
        if campaign["eta_s"] is not None:
            first += f"  {output.duration(campaign['eta_s'])} left"
    counts = [f"{word} {campaign[word]:,}" for word in ("deferred", "bounced")]
    counts += [f"{word} {campaign[word]:,}" for word in ("failed", "suppressed", "uncertain") if campaign[word]]
    if campaign["limit"]:
        counts.append(f"limit {campaign['limit']['name']} = {output.number(campaign['limit']['value'])}")
    if output.only_retries(campaign):
        counts.append(output.retries_left(campaign, now_s))
    return first, "  ".join(counts)


def job_line(progress: Mapping[str, Any]) -> str:
    """How far a job is: what it does, rows, rate, time left."""
    parts = [str(progress.get("phase") or "preparing")]
    if progress.get("rows"):
        parts.append(f"{progress['rows']:,} rows")
    if progress.get("per_second"):
        parts.append(f"{progress['per_second']:,.0f}/s")
    if progress.get("eta_s") is not None:
        parts.append(f"{output.duration(progress['eta_s'])} left")
    return "  ".join(parts)


def _concluded(campaign: Mapping[str, Any]) -> int:
    return int(campaign["audience"] - campaign["pending"] - campaign["in_flight"] - campaign["deferred"])


def _part(done: Any, whole: Any) -> float | None:
    return min(1.0, done / whole) if done is not None and whole else None
