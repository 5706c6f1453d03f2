"""Which rows the suppression log names (actors/sender/suppress.py)."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.sender.suppress import matching_rows
from shm.live.suppressed import ADD, ENTRY, REMOVE

Change = tuple[int, int, int, int]  # scope, op, first word, second word


def entries(*changes: Change) -> np.ndarray:
    found = np.zeros(len(changes), ENTRY)
    for entry, (scope, op, high, low) in zip(found, changes, strict=True):
        entry["scope"], entry["op"], entry["key"] = scope, op, (high, low)
    return found


def test_the_last_change_of_an_address_counts() -> None:
    """Suppressed, let in, suppressed again."""
    keys = np.array([[1, 1], [2, 2], [3, 3]], np.uint64)
    log = entries((0, ADD, 1, 1), (0, ADD, 2, 2), (0, REMOVE, 2, 2), (0, REMOVE, 3, 3), (0, ADD, 3, 3))
    assert matching_rows(keys, log, 7).tolist() == [0, 2]


def test_both_words_of_a_key_must_match() -> None:
    """An address that shares the first half of its key with a suppressed one is mailed."""
    keys = np.array([[1, 1], [1, 2]], np.uint64)
    assert matching_rows(keys, entries((0, ADD, 1, 2)), 7).tolist() == [1]


def test_an_entry_for_another_campaign_does_not_count() -> None:
    """Scope 0 is everywhere, else one campaign."""
    keys = np.array([[1, 1], [2, 2]], np.uint64)
    assert matching_rows(keys, entries((7, ADD, 1, 1), (8, ADD, 2, 2)), 7).tolist() == [0]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20),
    st.lists(
        st.tuples(st.sampled_from([0, 7, 8]), st.sampled_from([ADD, REMOVE]), st.integers(0, 3), st.integers(0, 3))
    ),
)
def test_agrees_with_reading_the_log_entry_by_entry(rows: list[tuple[int, int]], changes: list[Change]) -> None:
    """The arrays say what a loop over the log says."""
    last = {(high, low): op for scope, op, high, low in changes if scope in (0, 7)}
    wanted = [n for n, row in enumerate(rows) if last.get(row) == ADD]
    keys = np.array(rows, np.uint64).reshape(len(rows), 2)
    assert matching_rows(keys, entries(*changes), 7).tolist() == wanted
