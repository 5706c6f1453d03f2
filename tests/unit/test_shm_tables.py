"""The tables of the arena: what one half writes is what the other reads, and nothing of an earlier tenant."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm.arena import Arena
from shm.live.clock import EngineClock
from shm.live.counters import ATTEMPTED, CANCELLED, SENT, TENANT, CounterTable
from shm.live.faults import RECORDS, FaultTable
from shm.live.grants import LAPSE_NS, RETURNED, RING, SPENT, SPENT_NS, WANTED, GrantTable, Slice
from shm.live.heartbeat import ActorState, Heartbeats, Kind
from shm.live.histogram import BUCKETS, LIMIT_US, Histogram, bucket_of, lower_us, percentiles, sum_rows
from shm.live.leases import CANCEL, RETURN, RUN, LeaseTable, pack_order, unpack_order
from shm.live.relays import CONNECTIONS, FAILURES, RelayState, RelayTable
from tests.fixtures.arena import new_arena


@pytest.fixture
def arena() -> Iterator[Arena]:
    with new_arena() as made:
        yield made


# heartbeat


def test_what_a_predecessor_left_is_no_sign_of_life_of_its_successor(arena: Arena) -> None:
    """A row speaks only for the process whose pid the broker wrote."""
    broker, first, second = Heartbeats(arena), Heartbeats(arena), Heartbeats(arena)
    broker.spawned(1, Kind.SENDER, 0, 1, 100, 5, "0,1")
    first.hello(1, 100, 777)
    first.state(1, ActorState.READY)
    first.beat(1, 9)
    row = broker.row(1)
    assert row is not None
    assert (row.kind, row.pid, row.starttime, row.beat_ns, row.state, row.cpus) == (2, 100, 777, 9, 2, "0,1")
    broker.spawned(1, Kind.SENDER, 0, 2, 200, 6)
    row = broker.row(1)
    assert row is not None
    assert (row.pid, row.generation, row.starttime, row.beat_ns, row.state) == (200, 2, 0, 0, 0)
    second.hello(1, 200, 888)
    second.error(1, "boot failed: ü" + "x" * 200)
    row = broker.row(1)
    assert row is not None
    assert (row.starttime, row.beat_ns, row.state) == (888, 0, ActorState.STARTING)
    assert row.error.startswith("boot failed: ü")
    assert [r.row for r in broker.rows()] == [1]


# leases


def test_a_lease_is_shown_until_its_slot_is_freed(arena: Arena) -> None:
    """Offer, take, order, done, free: each word is read by the other side as it was written."""
    broker, actor = LeaseTable(arena), LeaseTable(arena)
    order = pack_order(RUN, gated=True, rows_max=1, relay=3)
    broker.offer(2, 5, 77, 7, 12, 4, order)
    broker.offer(2, 1, 78, 7, 13, 1, order)
    assert actor.scan(2) == [(1, 78, 7, 13, 1, order), (5, 77, 7, 12, 4, order)]
    assert actor.scan(1) == []
    actor.take(2, 5, 77)
    assert broker.acknowledged(2, 5) == (77, 0)
    broker.set_order(2, 5, pack_order(RETURN, gated=True))
    assert actor.order_word(2, 5)[0] == actor.order(2, 5)
    assert unpack_order(actor.order(2, 5)) == (RETURN, True, 0, 0, False, 1)
    actor.done(2, 5, 77)
    assert broker.acknowledged(2, 5) == (77, 77)
    broker.free(2, 5)
    assert [lease[0] for lease in actor.scan(2)] == [1]
    assert actor.number(2, 5) == 0


@given(
    action=st.sampled_from([RUN, RETURN, CANCEL]),
    gated=st.booleans(),
    rows_max=st.integers(0, 2**14 - 1),
    relay=st.integers(0, 2**16 - 1),
    retry=st.booleans(),
    weight=st.integers(1, 1000),
)
def test_order_words_say_what_was_packed(
    action: int, gated: bool, rows_max: int, relay: int, retry: bool, weight: int
) -> None:
    """Any order fits one signed word and comes out as it went in."""
    word = pack_order(action, gated=gated, rows_max=rows_max, relay=relay, retry=retry, weight=weight)
    assert 0 < word < 2**63
    assert unpack_order(word) == (action, gated, rows_max, relay, retry, weight)


# counters


def test_a_reader_never_credits_a_new_tenant_with_old_numbers(arena: Arena) -> None:
    """A row that changes hands between two looks is read as the new tenant's or as nobody's."""
    actor, reader = CounterTable(arena), CounterTable(arena)
    words = actor.open(1, 0, 11)
    words[SENT] += 5
    assert reader.read(1, 0) == (11, (0, 5, 0, 0, 0, 0, 0, 0, 0))
    words[TENANT] = 0  # the writer was killed while it took the row over
    assert reader.read(1, 0) is None
    words = actor.open(1, 0, 12)
    assert reader.read(1, 0) == (12, (0,) * 9)
    words[ATTEMPTED] += 1
    words[CANCELLED] += 2
    totals = reader.totals()
    assert totals.shape == (5, 8, 10)
    assert totals[1, 0].tolist() == [12, 1, 0, 0, 0, 0, 0, 0, 2, 0]
    assert totals.sum() == 12 + 3


def test_a_row_changing_hands_under_the_reader_is_not_taken(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the tenant differs after the counts were read, the counts are thrown away."""
    table = CounterTable(arena)
    table.open(1, 0, 11)[SENT] = 5

    class Changing:
        """Words whose writer gives the row to lease 12 just after the counts were read."""

        def __init__(self, words: memoryview[int]) -> None:
            self.words = words

        def __getitem__(self, index: int | slice) -> object:
            found = self.words[index]
            if isinstance(index, slice):
                found = np.array(found)
                CounterTable(arena).open(1, 0, 12)
            return found

    monkeypatch.setattr(table, "_words", Changing(table._words))
    assert table.read(1, 0) == (12, (0,) * 9)


# grants


def test_slices_cross_in_order_and_the_ring_refuses_what_it_cannot_hold(arena: Arena) -> None:
    """Sixteen slices fit; each is taken once; a taken one makes room."""
    broker, actor = GrantTable(arena), GrantTable(arena)
    broker.open(1, 2, 9)
    assert actor.next_slice(1, 2) is None
    pieces = [Slice(n, 10 * n, n, 0, 3) for n in range(1, RING + 2)]
    assert [broker.push(1, 2, *piece) for piece in pieces] == [True] * RING + [False]
    words = actor.accept(1, 2, 9)
    assert [actor.next_slice(1, 2) for _ in range(3)] == pieces[:3]
    assert broker.push(1, 2, *pieces[-1])
    assert [actor.next_slice(1, 2) for _ in range(RING - 1)] == [*pieces[3:RING], pieces[-1], None]
    words[WANTED] = 40
    words[SPENT_NS] = 123
    words[SPENT] += 2
    words[RETURNED] += 1
    assert broker.read(1, 2) == (9, 2, 1, 40, RING + 1)
    assert broker.spent_ns(1, 2) == 123
    assert broker.granted(1, 2) == sum(piece.n for piece in pieces)
    assert pieces[1].lapse_ns == 20 + 2 + LAPSE_NS


def test_grants_of_an_earlier_lease_never_reach_the_next_one(arena: Arena) -> None:
    """Until both halves name the same lease there is nothing to take, whatever the ring holds."""
    broker, actor = GrantTable(arena), GrantTable(arena)
    broker.open(1, 0, 5)
    actor.accept(1, 0, 5)
    broker.push(1, 0, 1, 1, 0, 0, 0)
    broker.open(1, 0, 6)
    assert broker.push(1, 0, 2, 2, 0, 0, 0)
    assert actor.next_slice(1, 0) is None
    assert broker.read(1, 0)[0] == 5
    actor.accept(1, 0, 6)
    assert actor.next_slice(1, 0) == Slice(2, 2, 0, 0, 0)


def test_a_slice_that_does_not_add_up_is_not_there_yet(arena: Arena) -> None:
    """A head seen before its slice (CPUs may reorder stores) yields nothing, and the slice once it is whole."""
    broker, actor = GrantTable(arena), GrantTable(arena)
    broker.open(0, 0, 1)
    actor.accept(0, 0, 1)
    broker.push(0, 0, 3, 1000, 10, 0, 0)
    ring = arena.table("grants.broker")[0, 0]
    ring["first_ns_0"] = 0
    assert actor.next_slice(0, 0) is None
    ring["first_ns_0"] = 1000
    assert actor.next_slice(0, 0) == Slice(3, 1000, 10, 0, 0)


# relays, clock, faults, histogram


def test_relay_rows_carry_allowances_down_and_use_up(arena: Arena) -> None:
    """The broker's half is read by the actor, the actor's by the broker; a dead actor's is wiped."""
    broker, actor = RelayTable(arena), RelayTable(arena)
    broker.allow(2, 3, 10, RelayState.UP, 2)
    assert (actor.allowance(2, 3), actor.state(2, 3), actor.mode_ceiling(2, 3)) == (10, RelayState.UP, 2)
    words = actor.words(2, 3)
    words[CONNECTIONS] += 4
    words[FAILURES] += 1
    assert broker.use(2, 3) == (4, 0, 1, *[0] * 10)
    assert broker.uses()[2, 3].tolist() == [4, 0, 1, *[0] * 10]
    broker.wipe(2)
    assert broker.uses().sum() == 0


def test_engine_time_is_one_for_all_and_never_goes_back(arena: Arena) -> None:
    """Readers agree with the broker, and a correction moves everybody forward at once."""
    clock, other = EngineClock.create(arena, 10**18, 0), EngineClock.attach(arena)
    assert other.at_ns(5) == 10**18 + 5
    before = other.now_ns()
    clock.advance(3 * 10**9)
    assert before + 3 * 10**9 <= other.now_ns() < before + 63 * 10**9
    assert other.now_s() == other.now_ns() // 10**9
    assert other.started_ns() == 10**18
    with pytest.raises(AssertionError):
        clock.advance(-1)


def test_a_storm_of_one_fault_takes_one_record_and_the_oldest_gives_way(arena: Arena) -> None:
    """Equal texts are counted together; the seventeenth text replaces the one not seen for longest."""
    table = FaultTable(arena)
    for now in range(1000):
        table.note(1, "connection refused", now)
    for index in range(RECORDS):
        table.note(1, f"fault {index} " + "é" * 150, 2000 + index)
    found = FaultTable(arena).read()
    assert len(found) == RECORDS
    assert all(fault.count == 1 for fault in found)
    assert not any(fault.text == "connection refused" for fault in found)
    table.note(1, "fault 3 " + "é" * 150, 5000)
    latest = table.read()[0]
    assert (latest.row, latest.count, latest.first_ns, latest.last_ns) == (1, 2, 2003, 5000)


@given(us=st.integers(-5, 10**10))
def test_a_bucket_holds_what_falls_into_it(us: int) -> None:
    """Each duration lies between its bucket's ends, which are a sixteenth apart."""
    bucket = bucket_of(us)
    kept = min(max(us, 0), LIMIT_US)
    assert lower_us(bucket) <= kept < lower_us(bucket + 1)
    assert lower_us(bucket + 1) - lower_us(bucket) <= max(1, kept / 16)
    assert 0 <= bucket < BUCKETS


def test_percentiles_are_those_of_all_actors_together(arena: Arena) -> None:
    """Two actors' latencies are summed; a percentile is right to a sixteenth; nothing counted is None."""
    assert percentiles(sum_rows(arena), [50, 99]) == [None, None]
    one, two = Histogram(arena, 1), Histogram(arena, 2)
    for us in range(1, 501):
        one.record(us * 100)
        two.record((us + 500) * 100)
    two.record(-1)
    two.record(10**12)
    counts = sum_rows(arena)
    assert counts.sum() == 1002
    p50, p99 = percentiles(counts, [50, 99])
    assert p50 == pytest.approx(50.0, rel=1 / 16)
    assert p99 == pytest.approx(99.0, rel=1 / 16)
