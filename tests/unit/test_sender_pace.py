"""The spending half of grants (actors/sender/pace.py)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.sender.pace import NEVER_NS, Gap, Pace
from shm.live.grants import LAPSE_NS, Slice

MS = 1_000_000


def begun(piece: Slice, gap: Gap | None = None) -> Pace:
    pace = Pace(gap or Gap())
    pace.begin(piece)
    return pace


def test_without_a_slice_nothing_is_ever_due() -> None:
    """No grant, no time."""
    assert Pace(Gap()).due_ns() == NEVER_NS


def test_messages_of_a_slice_are_due_a_step_apart_and_late_ones_at_once() -> None:
    """Each has its own earliest time; being late with one does not move the next."""
    pace = begun(Slice(3, 100, 10, 0, 2))
    assert (pace.due_ns(), pace.relay) == (100, 2)
    pace.spend(125)
    assert pace.due_ns() == 110
    pace.spend(125)
    assert pace.due_ns() == 120
    pace.spend(125)
    assert (pace.left, pace.due_ns()) == (0, NEVER_NS)


def test_a_slice_lapses_fifty_milliseconds_after_its_last_time() -> None:
    """Up to that moment it can be spent; after it the rest goes back, once."""
    pace = begun(Slice(4, 0, 10 * MS, 0, 0))
    pace.spend(0)
    assert pace.lapse(30 * MS + LAPSE_NS) == 0
    assert pace.lapse(30 * MS + LAPSE_NS + 1) == 3
    assert (pace.left, pace.lapse(NEVER_NS - 1)) == (0, 0)


def test_a_gap_counts_from_the_moment_the_last_message_was_handed_over() -> None:
    """Not from its token: composing never shortens it."""
    pace = begun(Slice(2, 0, 0, 5 * MS, 0))
    pace.spend(1 * MS)
    pace.handed_over(2 * MS)
    assert pace.due_ns() == 7 * MS


def test_leases_of_one_campaign_share_the_gap() -> None:
    """What one lease sent makes the other wait."""
    gap = Gap()
    first, second = begun(Slice(1, 0, 0, 5 * MS, 0), gap), begun(Slice(1, 0, 0, 5 * MS, 0), gap)
    first.spend(3 * MS)
    assert second.due_ns() == 8 * MS


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 50), st.integers(0, 5), st.sampled_from([0, 0, 1, 3])),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.integers(0, 4), min_size=1, max_size=200),
)
def test_never_early_never_closer_than_the_gap_never_more_than_granted(
    slices: list[tuple[int, int, int, int]], delays: list[int]
) -> None:
    """Whatever the slices and however late we look: the promises of a slice hold, and spent + returned = granted."""
    pace, now = Pace(Gap()), 0
    waiting = [Slice(n, first * MS, step * MS, gap * MS, 0) for n, first, step, gap in slices]
    granted = sum(piece.n for piece in waiting)
    spent = returned = 0
    last = None
    piece, used = None, 0
    for delay in [*delays, *[100] * (len(slices) + 1)]:
        now += delay * MS
        while True:
            returned += pace.lapse(now)
            if pace.due_ns() <= now:
                assert piece is not None
                assert now >= piece.first_ns + used * piece.step_ns
                assert now <= piece.lapse_ns
                assert last is None or not piece.gap_ns or now - last >= piece.gap_ns
                pace.spend(now)
                last, used, spent = now, used + 1, spent + 1
            elif not pace.left and waiting:
                piece, used = waiting.pop(0), 0
                pace.begin(piece)
            else:
                break
    assert spent + returned == granted
