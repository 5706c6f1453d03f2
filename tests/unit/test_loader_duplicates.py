"""Repeated addresses and suppressed ones are found exactly, in bounded memory."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from actors.loader.census import Census, Silenced
from actors.loader.duplicates import DuplicateFinder
from actors.loader.packing import RecordPacker, text_header
from broker.store import suppression
from broker.store.store import Store
from shm import address as shm_address

msgpack = pytest.importorskip("msgpack")


def random_keys(rng: random.Random, rows: int, different: int) -> np.ndarray:
    """Keys of which many repeat, and some share their first word with another and not the second."""
    pool = [(rng.randrange(1 << 64), rng.randrange(1 << 64)) for _ in range(different)]
    pool += [(first, rng.randrange(1 << 64)) for first, _ in pool[: different // 4]]
    return np.array([rng.choice(pool) for _ in range(rows)], np.uint64).reshape(-1, 2)


@pytest.mark.parametrize("held", [7, 100, 100_000])
def test_first_row_of_a_key_wins_and_every_later_one_is_found(tmp_path: Path, held: int) -> None:
    """Whether keys fit in memory or not, the rows reported are exactly those whose key came before."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    for rows in (0, 1, 50, 2_000):
        keys = random_keys(rng, rows, 1 + rows // 3)
        finder = DuplicateFinder(tmp_path, held)
        for first in range(0, rows, 33):
            finder.add(keys[first : first + 33])
        found = finder.finish().tolist()
        finder.close()
        seen: set[tuple[int, int]] = set()
        expected = []
        for row, key in enumerate(map(tuple, keys.tolist())):
            if key in seen:
                expected.append(row)
            seen.add(key)
        assert found == expected
        assert list(tmp_path.iterdir()) == []


def test_one_address_in_every_row_takes_no_room(tmp_path: Path) -> None:
    """A file that repeats one address for ever neither fills the scratch file nor makes one part large."""
    finder = DuplicateFinder(tmp_path, 100)
    finder.add(np.ones((10_050, 2), np.uint64))
    assert finder.finish().tolist() == list(range(1, 10_050))
    assert finder._written == 101
    finder.close()


def test_suppressed_rows_are_found_and_a_repeated_one_is_a_duplicate(tmp_path: Path) -> None:
    """Of a suppressed address the first row is suppressed and the others are duplicates; the position is noted."""
    store = Store.open(tmp_path / "store.db")
    people = [f"user{number}@example.com" for number in range(100)]
    entries = [suppression.Entry(shm_address.key(person), person) for person in people[::3]]
    suppression.add(store, entries, "manual", "test", 1.0)
    silenced = Silenced(tmp_path / "store.db")
    assert silenced.position == len(entries)
    census = Census(silenced, tmp_path)
    rows = people + people[:10]
    census.add(np.frombuffer(b"".join(map(shm_address.key, rows)), np.uint64).reshape(-1, 2))
    result = census.finish()
    census.close()
    store.close()
    assert result.duplicates.tolist() == list(range(100, 110))
    assert result.suppressed.tolist() == list(range(0, 100, 3))


def test_suppression_looks_at_the_whole_key() -> None:
    """A key that shares its first word with suppressed ones is suppressed only if the second is the same too."""
    silenced = Silenced(Path("/nonexistent"))
    silenced._keys = np.array([[1, 1], [5, 2], [5, 7], [5, 9], [8, 1]], np.uint64)
    asked = np.array([[5, 7], [5, 9], [5, 8], [5, 2], [0, 0], [9, 9], [8, 1], [1, 2]], np.uint64)
    assert silenced.among(asked).tolist() == [True, True, False, True, False, False, True, False]


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("columns", [1, 5, 20])
def test_records_are_the_maps_msgpack_would_make(numbered: bool, columns: int) -> None:
    """Packing by joining gives what packing a dict gives, at every length a text header knows."""
    names = [f"column_{index}" for index in range(columns)]
    lengths = [0, 1, 31, 32, 255, 256, 65_535, 65_536]
    cells = [[("é" * length)[:length].encode()[:length].decode(errors="ignore") for length in lengths]] * columns
    lines = np.arange(1, len(lengths) + 1) * 500_000_000
    packed = RecordPacker(names, numbered=numbered).pack(lines, [[c.encode() for c in column] for column in cells])
    for row, record in enumerate(packed):
        fields = dict.fromkeys(names, cells[0][row])
        expected = {"_line": int(lines[row]), **fields} if numbered else fields
        assert msgpack.unpackb(record) == expected
        assert list(msgpack.unpackb(record)) == list(expected)
        if not numbered:
            assert record == msgpack.packb(fields)
    assert all(text_header(length) + b"x" * length == msgpack.packb("x" * length) for length in lengths)
