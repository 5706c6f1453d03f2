"""The suppression log: cheap to append, followed across segments and processes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from shm.arena import Arena
from shm.live.suppressed import ADD, ENTRY, SEGMENT_ENTRIES, SuppressionLog, SuppressionReader
from tests.fixtures.arena import START_ID, child, new_arena


@pytest.fixture
def arena() -> Iterator[Arena]:
    with new_arena() as made:
        yield made


def entries(first: int, n: int) -> np.ndarray:
    made = np.zeros(n, ENTRY)
    made["op"] = ADD
    made["key"][:, 0] = np.arange(first, first + n)
    return made


def test_a_reader_follows_the_log_across_segments(arena: Arena) -> None:
    """Batches that straddle segments are read in order, whole, from any index on."""
    log, reader = SuppressionLog.create(arena, 1000), SuppressionReader(arena)
    assert (log.count, log.position, reader.since(0)) == (0, 999, [])
    seen, total = 0, 0
    for n in (1, SEGMENT_ENTRIES - 2, 5, 2 * SEGMENT_ENTRIES, 3):
        log.append(entries(total, n))
        total += n
        views = reader.since(seen)
        keys = np.concatenate([view["key"][:, 0] for view in views])
        assert keys.tolist() == list(range(seen, total))
        seen += len(keys)
    assert reader.count() == log.count == total
    assert log.position == 999 + total
    assert reader.index_after(999) == 0
    assert reader.since(reader.index_after(log.position - 2))[0]["key"][:, 0].tolist() == [total - 2, total - 1]
    with pytest.raises(ValueError, match="begins at change 1000"):
        reader.index_after(998)
    log.close()
    reader.close()


def test_another_process_reads_segments_made_after_it_attached(arena: Arena) -> None:
    """A process that attached to an empty log sees a million later entries."""
    code = """
import sys
from shm.arena import Arena
from shm.live.suppressed import SuppressionReader
reader = SuppressionReader(Arena.attach(sys.argv[1], sys.argv[2]))
print(reader.count(), flush=True)
sys.stdin.readline()
print(sum(int(view["key"][:, 0].sum()) for view in reader.since(0)))
"""
    log = SuppressionLog.create(arena, 0)
    process = child(code, arena.name, START_ID)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    log.append(entries(0, 200_000))
    assert process.communicate("\n") == (f"{199_999 * 100_000}\n", "")
    log.close()


def test_two_million_appends_cost_copies_only(arena: Arena) -> None:
    """2,000,000 entries in batches of a thousand take well under a second."""
    log, batch = SuppressionLog.create(arena, 0), entries(0, 1000)
    began = time.process_time()
    for _ in range(2000):
        log.append(batch)
    assert time.process_time() - began < 1.0
    assert log.count == 2_000_000
    log.close()
