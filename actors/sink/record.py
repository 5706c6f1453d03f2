"""What the rehearsal server remembers: counts, duplicates, and the accepted messages if somebody wants them.

It never refuses anything. Messages are written in batches: a line is in the file at the latest FLUSH_S after its
message was accepted while the sink is idle, and always when the sink has printed its counts.

Invariants
- `messages` counts accepted messages, one per recipient; what was refused or dropped is counted elsewhere.
- A duplicate is an accepted message whose recipient and Message-ID were accepted before; it counts in `messages` too.
  It is looked for among the last REMEMBERED messages at least, so memory is bounded.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["COUNTERS", "FLUSH_S", "MEANINGS", "Record"]

FLUSH_S = 0.05  # long enough to batch, short enough that a person looking at the file sees it live
_FLUSH_BYTES = 1 << 22  # a busy sink writes sooner, to bound memory

_MESSAGE_ID_RE = re.compile(rb"(?:^|\r\n)Message-ID:[ \t]*([^\r\n]*)\r\n", re.IGNORECASE)

MEANINGS = {
    "sessions": "connections that were greeted or turned away",
    "messages": "accepted, one for each recipient",
    "bytes": "of them; after DATA with the dots that were doubled",
    "by_bdat": "of the messages, those that came in chunks; `by_data`: the others",
    "duplicates": "accepted for a recipient who had accepted the same Message-ID, among the last million messages",
    "deferred": "temporary refusals",
    "greylisted": "of strangers",
    "full": "of full mailboxes",
    "bounced": "refusals for good",
    "blocked": "refusals that blame the sender or its message",
    "refused": "messages beyond SIZE, and parameters that are not taken",
    "throttled": "too fast, or over the quota",
    "closed_421": "connections closed by a 421",
    "dropped_before": "connections broken off before the body",
    "dropped_during": "in the middle of it",
    "dropped_after": "after it, before its answer",
    "hung": "connections that were left without an answer",
    "garbage": "answers that are none",
    "turned_away": "connections beyond `--max-connections`",
    "tls_sessions": "encrypted ones",
    "logins": "AUTH that succeeded",
    "logins_refused": "AUTH that did not",
}
"""Every counter, and what it counts."""

COUNTERS = tuple(MEANINGS)
REMEMBERED = 1_000_000  # messages in which a duplicate is looked for, at least; twice as many take 130 MB
SIZE_STEP = 16  # bytes: sizes are told to this


class Record:
    """Counts of one run, and its NDJSON file.

    keep        directory that gets `messages.ndjson` (appended); None = keep no messages
    first       keep so many messages, and only count the rest; None = keep all
    failure     why the file could not be written; from then on its counts are not to be trusted
    on_failure  called then
    Raises OSError if the directory cannot be made or the file not opened.
    """

    def __init__(self, keep: Path | None = None, first: int | None = None) -> None:
        self.counts = dict.fromkeys(COUNTERS, 0)
        self.sessions_open = 0
        self.sessions_most = 0
        self._seen: set[int] = set()
        self._seen_before: set[int] = set()
        self._sizes: dict[int, int] = {}  # messages by size, in steps
        self._answers = 0
        self._answers_ns = 0
        self._answers_ns_most = 0
        self._lines: list[bytes] = []
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.failure: OSError | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._first = first
        self._file = None
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            self._file = (keep / "messages.ndjson").open("ab", buffering=0)

    def opened(self) -> None:
        """A session began."""
        self.counts["sessions"] += 1
        self.sessions_open += 1
        self.sessions_most = max(self.sessions_most, self.sessions_open)

    def closed(self) -> None:
        """A session ended."""
        self.sessions_open -= 1

    def answered(self, after_ns: int) -> None:
        """What arrived in one read was answered so much later."""
        self._answers += 1
        self._answers_ns += after_ns
        self._answers_ns_most = max(self._answers_ns_most, after_ns)

    def accepted(self, mail_from: bytes, recipient: bytes, body: bytes, *, stuffed: bool) -> None:
        """One message was accepted for one recipient; `stuffed`: it came after DATA, and its dots are doubled. Hot."""
        counts = self.counts
        counts["messages"] += 1
        counts["bytes"] += len(body)
        if not stuffed:
            counts["by_bdat"] += 1
        step = len(body) // SIZE_STEP
        sizes = self._sizes
        sizes[step] = sizes.get(step, 0) + 1
        identity = _message_id(body)
        if identity:
            # A 64-bit hash a message: exact enough for a rehearsal, and a million messages stay small.
            mark = hash((recipient, identity))
            if mark in self._seen or mark in self._seen_before:
                counts["duplicates"] += 1
            else:
                self._seen.add(mark)
                if len(self._seen) >= REMEMBERED:
                    self._seen, self._seen_before = set(), self._seen
        if self._file is not None and (self._first is None or counts["messages"] <= self._first):
            self._keep(mail_from, recipient, _unstuffed(body) if stuffed else body)

    def _keep(self, mail_from: bytes, recipient: bytes, data: bytes) -> None:
        line = json.dumps(
            {
                "time": time.time(),
                "mail_from": mail_from.decode("utf-8", "backslashreplace"),
                "rcpt_to": recipient.decode("utf-8", "backslashreplace"),
                "data": data.decode("latin-1"),
            }
        ).encode()
        self._lines.append(line)
        self._waiting_bytes += len(line)
        if self._waiting_bytes > _FLUSH_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what waits. If the disk does not take it, `failure` says why and `on_failure` is called."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._file is None or not self._lines:
            return
        batch = memoryview(b"\n".join(self._lines) + b"\n")
        self._lines.clear()
        self._waiting_bytes = 0
        try:
            while batch:
                batch = batch[self._file.write(batch) :]
        except OSError as error:
            self.failure = self.failure or error
            self.on_failure()

    def totals(self) -> dict[str, int]:
        """All counts, for printing."""
        sizes = sorted(self._sizes)
        least, greatest = (sizes[0], sizes[-1]) if sizes else (0, 0)
        return {
            **self.counts,
            "by_data": self.counts["messages"] - self.counts["by_bdat"],
            "sessions_open": self.sessions_open,
            "sessions_most": self.sessions_most,
            "size_least": least * SIZE_STEP,
            "size_median": self._median(sizes) * SIZE_STEP,
            "size_greatest": greatest * SIZE_STEP,
            "answer_us_mean": self._answers_ns // max(1, self._answers) // 1000,
            "answer_us_most": self._answers_ns_most // 1000,
        }

    def _median(self, sizes: list[int]) -> int:
        """The size that half of the messages do not exceed, in steps."""
        below = 0
        for size in sizes:
            below += self._sizes[size]
            if below * 2 >= self.counts["messages"]:
                return size
        return 0

    def close(self) -> None:
        """Flush and close the file."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None


def _unstuffed(body: bytes) -> bytes:
    """The message without the dots that DATA doubles (RFC 5321 4.5.2)."""
    data = body.replace(b"\r\n..", b"\r\n.")
    return data[1:] if data.startswith(b"..") else data


def _message_id(body: bytes) -> bytes:
    """The value of the Message-ID header, or nothing."""
    end = body.find(b"\r\n\r\n") + 2
    start = body.find(b"\r\nMessage-ID: ", 0, end)  # as our own messages spell it: a plain search is cheap
    if start >= 0:
        return body[start + 14 : body.find(b"\r\n", start + 14)]
    match = _MESSAGE_ID_RE.search(body, 0, end)
    return match[1] if match is not None else b""
