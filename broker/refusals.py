"""What relays said to the people of a campaign who wait for another attempt, the most frequent words first.

Reads ledgers and replies in the files thread, a shard at a time, so that hand-overs go on in between. Bounded: the
shards with most such people first, and no further shard once the time is over; what comes out is a sample then.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

import numpy as np

from broker.contract.paths import StateDir
from broker.running import Phase, Running, ShardState
from shm.files import replies
from shm.files.durable import FileFault
from shm.files.ledger import Ledger, States, unpack_a
from shm.files.ledger_words import rows_in

__all__ = ["refusals"]

SHARDS_MAX: Final = 40
BUDGET_S: Final = 0.3
BYTES_MAX: Final = 2 << 20  # of a file of replies: beyond, the codes have to do
WORDS_MAX: Final = 160
_REPLY: Final = np.uint64(0x00FF_FFFF_FFFF_0000)  # of word A: code and enhanced status

Found = dict[int, Counter[str]]  # by the reply's bits of word A: its texts


class _Engine(Protocol):
    """What this module needs of the engine."""

    state: StateDir
    instance: str

    def work(self, function: Callable[[], Any]) -> Awaitable[Any]: ...


async def refusals(engine: _Engine, campaign: Running) -> list[tuple[str, int]]:
    """(words, how many people), by reply code; of several texts under one code the most frequent one stands for all.

    A shard whose files cannot be read is left out: who cannot send has other words for that.
    """
    until = time.monotonic() + BUDGET_S
    found: Found = {}
    for shard in sorted(campaign.shards.values(), key=_most)[:SHARDS_MAX]:
        if shard.phase is Phase.IDLE and not shard.counts.deferred:
            continue
        for bits, texts in (await engine.work(partial(_of_shard, engine, campaign.id, shard.number))).items():
            found.setdefault(bits, Counter()).update(texts)
        if time.monotonic() > until:
            break
    groups = [(texts.most_common(1)[0][0], texts.total()) for texts in found.values()]
    return sorted(groups, key=lambda group: -group[1])


def _most(shard: ShardState) -> int:
    return -shard.counts.deferred


def _of_shard(engine: _Engine, campaign: int, number: int) -> Found:
    """Of one shard, also one that is out. About 20 ms where 10,000 people were refused."""
    try:
        path = engine.state.ledger(campaign, number)
        ledger = Ledger.open(path, instance=engine.instance, campaign=campaign, shard=number, writable=False)
        try:
            rows = rows_in(ledger.words(), (States.DEFERRED,))
            words = ledger.words()[rows, 0]
        finally:
            ledger.close()
        texts = _texts(engine, campaign, number) if len(rows) else {}
    except (OSError, FileFault):
        return {}
    found: Found = {}
    for row, word in zip(rows.tolist(), words.tolist(), strict=True):
        told = texts.get(row)
        counter = found.setdefault(word & int(_REPLY), Counter())
        counter[_short(told[-1][1]) if told else _coded(word)] += 1
    return found


def _texts(engine: _Engine, campaign: int, number: int) -> dict[int, list[tuple[int, str]]]:
    path = engine.state.replies(campaign, number)
    if not path.exists() or path.stat().st_size > BYTES_MAX:
        return {}
    return replies.read(path)


def _coded(word: int) -> str:
    """A reply of which only the code is known."""
    row = unpack_a(word)
    if not row.code:
        return "no reply"
    return f"{row.code} {'.'.join(map(str, row.enhanced))}" if any(row.enhanced) else str(row.code)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WORDS_MAX else line[: WORDS_MAX - 3] + "..."
