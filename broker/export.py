"""Streams what became of each recipient: `python -m broker.export STATE CAMPAIGN --csv | --ndjson`.

Reads bundle, shards, ledgers and replies, one shard at a time, so memory stays flat for any audience. Needs no engine;
of a campaign that is being sent each row is as it was when its shard was read.

A row is a recipient of the audience, in the order of its source; duplicates are left out. Fields, empty (CSV) or null
(NDJSON) where there is nothing to say:

email, line      the address, and the line of the source it came from
state            pending, in_flight, deferred, sent, bounced, failed, suppressed, cancelled, uncertain
attempts         messages handed to a relay
code, enhanced   the last reply: 550, "5.1.1"; reply: its text, where it was a refusal, or why there was none
first_attempt    until the recipient concludes; finished: from then on; next_attempt: of a deferred one (RFC 3339, UTC)
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TextIO

from broker.audit import find_campaign, instance_of, run, shard_numbers
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from broker.contract.timefmt import rfc3339
from shm.files import replies
from shm.files.bundle import Bundle
from shm.files.ledger import Ledger, States, unpack_a
from shm.files.ledger_states import CONCLUDED
from shm.files.shard import LINE_FIELD, Shard

__all__ = ["FIELDS", "main", "outcomes", "write_csv", "write_ndjson"]

FIELDS: Final = (
    "email", "state", "attempts", "code", "enhanced", "reply", "first_attempt", "finished", "next_attempt", "line",
)  # fmt: skip
WORDS: Final = {
    state: "in_flight" if state in {States.CLAIMED, States.SENDING} else state.name.lower() for state in States
}
_BEFORE: Final = (
    "no reply: the connection was lost, or the relay fell silent or spoke no SMTP, before it had the message"
)
_AFTER: Final = "no reply: the connection was lost, or the relay fell silent, after the message was handed over"
UNANSWERED: Final = {States.DEFERRED: _BEFORE, States.FAILED: _BEFORE, States.UNCERTAIN: _AFTER}
_time = lru_cache(4096)(rfc3339)  # recipients of a shard conclude within few seconds

Outcome = tuple[str | int | None, ...]  # in the order of FIELDS


def outcomes(state: StateDir, found: Bundle) -> Iterator[Outcome]:
    """Every recipient of the campaign, duplicates left out: a tuple in the order of FIELDS.

    Raises FileFault or OSError for a file that is missing, damaged or another's.
    """
    for number in shard_numbers(state.campaign(found.campaign), "shard"):
        yield from _shard(state, found, number)


def _shard(state: StateDir, found: Bundle, number: int) -> Iterator[Outcome]:
    campaign, instance = found.campaign, found.instance
    shard = Shard.open(state.shard(campaign, number), instance=instance, campaign=campaign, shard=number)
    try:
        path = state.ledger(campaign, number)
        ledger = Ledger.open(path, instance=instance, campaign=campaign, shard=number, writable=False)
        words = ledger.words().tolist()
        ledger.close()
        texts = replies.read(state.replies(campaign, number))
        for row, (a, b) in enumerate(words):
            if a & 0xF != States.DUPLICATE:
                refusals = texts.get(row)
                fields = shard.fields(row)
                yield _outcome(a, b, fields[found.email_field], refusals[-1][1] if refusals else None, fields)
    finally:
        shard.close()


def _outcome(a: int, b: int, email: str, reply: str | None, fields: dict[str, Any]) -> Outcome:
    state, attempts, code, enhanced = _said(a)
    late = _time(b >> 32 or None)
    concluded = state in CONCLUDED
    return (
        email,
        WORDS[state],
        attempts,
        code,
        enhanced,
        None if state is States.SENT else reply or (UNANSWERED.get(state) if attempts and not code else None),
        None if concluded else late,
        late if concluded else None,
        _time(b & 0xFFFF_FFFF or None) if state is States.DEFERRED else None,
        fields.get(LINE_FIELD),
    )


@lru_cache(4096)
def _said(a: int) -> tuple[States, int, int | None, str | None]:
    """What word A says: state, attempts, code, enhanced status. Most recipients say one of few things."""
    row = unpack_a(a)
    return row.state, row.attempts, row.code or None, "{}.{}.{}".format(*row.enhanced) if any(row.enhanced) else None


def write_csv(rows: Iterator[Outcome], out: TextIO) -> None:
    """RFC 4180 with a header line."""
    writer = csv.writer(out)
    writer.writerow(FIELDS)
    writer.writerows(rows)


def write_ndjson(rows: Iterator[Outcome], out: TextIO) -> None:
    """One JSON object a line, every field present."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    out.writelines(encode(dict(zip(FIELDS, row, strict=True))) + "\n" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the head of this module."""
    parser = argparse.ArgumentParser(prog="python -m broker.export", description="Every recipient and its outcome.")
    parser.add_argument("state", type=Path, help="the state directory")
    parser.add_argument("campaign", help="id or name")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--csv", dest="write", action="store_const", const=write_csv)
    form.add_argument("--ndjson", dest="write", action="store_const", const=write_ndjson)
    options = parser.parse_args(arguments)
    write: Callable[[Iterator[Outcome], TextIO], None] = options.write

    def work() -> Iterator[EcmError]:
        """Write it; there is nothing to complain of in the end."""
        state = StateDir(options.state)
        found = find_campaign(state, instance_of(state), options.campaign)
        out = io.TextIOWrapper(sys.stdout.buffer, "utf-8", newline="")
        try:
            write(outcomes(state, found), out)
        finally:
            out.detach()  # flushes what there is, and leaves stdout open
        return iter(())

    return run(work, as_json=write is write_ndjson)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it, as it ends any filter
    sys.exit(main())
