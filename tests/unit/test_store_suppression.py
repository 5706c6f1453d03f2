"""Suppressions and their numbered changes, against a plain model and on files of some size."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from broker.contract.errors import EcmError
from broker.store import suppression
from broker.store.store import Store
from broker.store.suppression import ADD, KINDS, REMOVE, Entry
from shm.address import key, normalise


def entry(address: str) -> Entry:
    return Entry(key(address), normalise(address))


def changes_of(store: Store, after: int = 0) -> list[tuple[int, int, int, bytes]]:
    found = suppression.changes_since(store, after)
    return [
        (found.first + n, int(found.ops[n]), int(found.kinds[n]), found.keys[n].tobytes()) for n in range(len(found))
    ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "store.db")
    yield opened
    opened.close()


def test_an_addition_is_a_numbered_change_and_a_second_one_is_none(store: Store) -> None:
    """Addresses become changes in order; one that is suppressed already makes none and keeps its reason."""
    made = suppression.add(store, [entry("a@x.org"), entry("b@x.org"), entry("A@x.org ")], "bounce", "import", 5.0)
    assert (made.first, made.last, made.ops.tolist(), made.kinds.tolist()) == (1, 2, [ADD] * 2, [KINDS["bounce"]] * 2)
    again = suppression.add(store, [entry("b@x.org"), entry("c@x.org")], "manual", "operator", 6.0)
    assert (again.first, len(again)) == (3, 1)
    assert len(suppression.add(store, [entry("c@x.org")], "manual", "operator", 7.0)) == 0
    assert changes_of(store) == [
        (1, ADD, KINDS["bounce"], key("a@x.org")),
        (2, ADD, KINDS["bounce"], key("b@x.org")),
        (3, ADD, KINDS["manual"], key("c@x.org")),
    ]
    newest = suppression.listing(store.path)
    assert [(row.address, row.kind, row.source, row.created) for row in newest] == [
        ("c@x.org", "manual", "operator", 6.0),
        ("b@x.org", "bounce", "import", 5.0),
        ("a@x.org", "bounce", "import", 5.0),
    ]


def test_a_removal_is_a_change_of_the_same_kind(store: Store) -> None:
    """Removing tells the log, names only what was there, and lets the address be suppressed anew."""
    suppression.add(store, [entry("a@x.org")], "complaint", "api", 1.0)
    made = suppression.remove(store, [key("a@x.org"), key("nobody@x.org"), key("a@x.org")])
    assert (made.first, made.ops.tolist(), made.kinds.tolist()) == (2, [REMOVE], [KINDS["complaint"]])
    assert suppression.count(store.path) == 0
    assert suppression.add(store, [entry("a@x.org")], "manual", "api", 1.0).first == 3
    assert suppression.position(store) == suppression.last_position(store.path) == 3


def test_another_process_reads_keys_as_the_log_writes_them(store: Store) -> None:
    """`keys` gives each suppressed key as its two words, and nothing when nobody is suppressed."""
    assert suppression.keys(store.path).shape == (0, 2)
    addresses = [f"user{n}@example.com" for n in range(100)]
    suppression.add(store, map(entry, addresses), "manual", "import", 1.0)
    words = suppression.keys(store.path)
    assert words.dtype == np.uint64
    assert sorted(row.tobytes() for row in words) == sorted(map(key, addresses))
    assert suppression.last_position(store.path) == 100


def test_listings_go_on_where_they_ended_and_take_prefixes_literally(store: Store) -> None:
    """Pages by position give every row once; `%` and `_` in a prefix mean themselves."""
    for n in range(5):
        suppression.add(store, [entry(f"a_{n}@x.org"), entry(f"ab{n}@x.org")], "manual", "api", 1.0)
    first = suppression.listing(store.path, limit=6)
    rest = suppression.listing(store.path, limit=6, before=first[-1].position)
    assert [row.position for row in first + rest] == list(range(10, 0, -1))
    assert [row.address for row in suppression.listing(store.path, "a_")] == [f"a_{n}@x.org" for n in (4, 3, 2, 1, 0)]
    assert suppression.listing(store.path, "%") == []


def test_a_store_that_is_not_there_is_an_error_not_an_empty_list(tmp_path: Path) -> None:
    """A snapshot must never run without the suppressions it could not read."""
    (tmp_path / "broken.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    for path in (tmp_path / "none.db", tmp_path / "broken.db"):
        for read in (suppression.keys, suppression.last_position, suppression.count, suppression.listing):
            with pytest.raises(EcmError) as caught:
                read(path)
            assert caught.value.code == "io_failed"


def test_a_batch_has_a_bound(store: Store) -> None:
    """A whole batch fits one statement; more than one batch is a mistake of ours."""
    entries = [Entry(n.to_bytes(16, "big"), f"u{n}@x.org") for n in range(suppression.BATCH_ROWS + 1)]
    with pytest.raises(AssertionError, match="bound"):
        suppression.add(store, entries, "manual", "import", 1.0)
    assert suppression.add(store, entries[1:], "manual", "import", 1.0).last == suppression.BATCH_ROWS
    assert len(suppression.remove(store, [e.key for e in entries[1:]])) == suppression.BATCH_ROWS


def test_batches_sorted_by_key_are_fast_and_short(store: Store) -> None:
    """100,000 additions in sorted batches: each holds the store's thread well under the 100 ms one call may wait."""
    chosen = random.Random(7)
    entries = sorted(Entry(chosen.randbytes(16), f"user{n}@example.com") for n in range(100_000))
    times = []
    for start in range(0, len(entries), suppression.BATCH_ROWS):
        began = time.perf_counter()
        suppression.add(store, entries[start : start + suppression.BATCH_ROWS], "manual", "import", 1.0)
        times.append(time.perf_counter() - began)
    assert suppression.count(store.path) == 100_000
    assert sorted(times)[len(times) // 2] < 0.1


class Model(RuleBasedStateMachine):
    """The table is what the changes add up to, and positions have no gap, whatever is added and removed."""

    path: Path

    def __init__(self) -> None:
        super().__init__()
        self.store = Store.open(self.path)
        with self.store.begin() as connection:
            connection.exec_driver_sql("DELETE FROM suppressions")
            connection.exec_driver_sql("DELETE FROM suppression_changes")
        self.begin = suppression.position(self.store)
        self.suppressed: set[bytes] = set()

    @rule(names=st.lists(st.integers(0, 12), max_size=6), reason=st.sampled_from([*KINDS, "gone"]))
    def add(self, names: list[int], reason: str) -> None:
        wanted = [entry(f"u{n}@x.org") for n in names]
        made = suppression.add(self.store, wanted, reason, "test", 1.0)
        assert {row.tobytes() for row in made.keys} == {e.key for e in wanted} - self.suppressed
        self.suppressed |= {e.key for e in wanted}

    @rule(names=st.lists(st.integers(0, 12), max_size=6))
    def remove(self, names: list[int]) -> None:
        wanted = [key(f"u{n}@x.org") for n in names]
        made = suppression.remove(self.store, wanted)
        assert {row.tobytes() for row in made.keys} == self.suppressed & set(wanted)
        self.suppressed -= set(wanted)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.path)

    @invariant()
    def adds_up(self) -> None:
        made = changes_of(self.store, self.begin)
        assert [position for position, *_ in made] == list(range(self.begin + 1, self.begin + 1 + len(made)))
        replayed: set[bytes] = set()
        for _, op, _, which in made:
            assert (which in replayed) == (op == REMOVE)
            replayed ^= {which}
        assert replayed == self.suppressed == {row.tobytes() for row in suppression.keys(self.path)}

    def teardown(self) -> None:
        self.store.close()


def test_the_table_is_what_its_changes_add_up_to(tmp_path: Path) -> None:
    """Random additions, removals and restarts against a set."""
    Model.path = tmp_path / "store.db"
    run_state_machine_as_test(
        Model, settings=settings(max_examples=15, stateful_step_count=20, deadline=None, print_blob=True)
    )
