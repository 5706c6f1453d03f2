"""The arena: made in full, found by name from any process, never lost to a tracker, gone when removed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shm.arena import Arena, ArenaMismatch, Shape, ShmFull
from shm.live.counters import SENT, CounterTable
from shm.live.layout import LANE
from shm.live.suppressed import ENTRY, SuppressionLog
from shm.live.tables import TABLES
from shm.segment import Segment
from tests.fixtures.arena import START_ID, child, new_arena, segments

ATTACH = """
import os, sys
from multiprocessing import resource_tracker
from shm.arena import Arena
from shm.live.counters import SENT, CounterTable
arena = Arena.attach(sys.argv[1], sys.argv[2])
words = CounterTable(arena).open(1, 3, 42)
words[SENT] += 7
print("attached", resource_tracker._resource_tracker._pid, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def arena() -> Iterator[Arena]:
    with new_arena() as made:
        yield made


def test_another_process_sees_and_writes_the_same_tables_and_starts_no_tracker(arena: Arena) -> None:
    """What an attached process counts is read here; it runs no resource tracker, and its end says nothing."""
    process = child(ATTACH, arena.name, START_ID)
    assert process.stdout is not None
    assert process.stdout.readline() == "attached None\n"
    read = CounterTable(arena).read(1, 3)
    assert read is not None
    assert (read[0], read[1].sent) == (42, 7)
    out, errors = process.communicate("\n")
    assert (out, errors, process.returncode) == ("", "", 0)
    assert segments(arena.name), "an attached process that ends takes nothing with it"


def test_a_killed_process_leaves_the_arena_intact(arena: Arena) -> None:
    """After kill -9 of an attached process its words stand, and another process attaches as before."""
    process = child(ATTACH, arena.name, START_ID)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert errors == ""
    read = CounterTable(arena).read(1, 3)
    assert read is not None
    assert read[1].sent == 7
    again = Arena.attach(arena.name, START_ID)
    assert CounterTable(again).read(1, 3) == read
    again.close()


def test_making_and_removing_an_arena_starts_no_tracker() -> None:
    """The broker's end, too, leaves the resource tracker alone, and says nothing when it ends."""
    code = """
import sys
from multiprocessing import resource_tracker
from shm.arena import Arena, Shape
arena = Arena.create(sys.argv[1], Shape(2), "abc", "boot")
arena.close()
Arena.unlink(sys.argv[1])
print(resource_tracker._resource_tracker._pid)
"""
    assert child(code, f"/ecm-{os.urandom(6).hex()}").communicate() == ("None\n", "")


def test_unlink_removes_the_arena_and_the_segments_of_a_crashed_broker() -> None:
    """A broker that is killed leaves its arena and log segments; the next one removes them by the arena's name."""
    code = """
import os, signal, sys
import numpy as np
from shm.arena import Arena, Shape
from shm.live.suppressed import ENTRY, SuppressionLog
arena = Arena.create(sys.argv[1], Shape(2), "abc", "boot")
SuppressionLog.create(arena, 1).append(np.zeros(70_000, ENTRY))
os.kill(os.getpid(), signal.SIGKILL)
"""
    name = f"/ecm-{os.urandom(6).hex()}"
    assert child(code, name).communicate()[1] == ""
    stem = name[1:]
    assert segments(name) == [stem, f"{stem}.s1", f"{stem}.s2"]
    Arena.unlink(name)
    assert segments(name) == []
    Arena.unlink(name)
    with pytest.raises(FileNotFoundError):
        Arena.attach(name)


def test_views_outlive_close_and_unlink(arena: Arena) -> None:
    """Closing with arrays and words in use raises nothing, and they stay valid until they are dropped."""
    table, words = arena.table("counters"), arena.words("counters")
    arena.close()
    arena.close()
    Arena.unlink(arena.name)
    words[SENT] = 5
    assert table[0, 0]["sent"] == 5
    assert segments(arena.name) == []


def test_a_process_that_ends_with_open_views_ends_quietly(arena: Arena) -> None:
    """No BufferError from a destructor reaches the log when a process ends without closing."""
    code = "import sys; from shm.arena import Arena; a = Arena.attach(sys.argv[1]); w = a.words('grants.actor')"
    assert child(code, arena.name).communicate() == ("", "")


def test_attaching_refuses_another_start_and_another_layout(arena: Arena) -> None:
    """The mismatch names what differs: start id, layout version, magic."""
    with pytest.raises(ArenaMismatch, match="start id is '0123456789ab', expected 'ffff'"):
        Arena.attach(arena.name, "ffff")
    raw = Segment.open(arena.name.lstrip("/"))
    raw.buf[8] += 1
    with pytest.raises(ArenaMismatch, match="layout version"):
        Arena.attach(arena.name, START_ID)
    raw.buf[0] = 0
    with pytest.raises(ArenaMismatch, match="magic"):
        Arena.attach(arena.name, START_ID)
    raw.close()


def test_an_arena_that_does_not_fit_names_the_mend_and_leaves_nothing() -> None:
    """More than /dev/shm holds is an error when the arena is made, and the name is free again."""
    status = os.statvfs("/dev/shm")
    if status.f_blocks == 0:
        pytest.skip("/dev/shm has no limit here")
    name = f"/ecm-{os.urandom(6).hex()}"
    actors = 4096
    slots = min(65536, status.f_blocks * status.f_frsize // (actors * 1024) + 1024)
    with pytest.raises(ShmFull, match="--shm-size"):
        Arena.create(name, Shape(actors=actors, slots=slots), START_ID, "boot")
    assert segments(name) == []


def test_two_senders_need_a_modest_arena() -> None:
    """Broker, two senders, loader and monitor with 128 slots each fit in 2 MB."""
    with new_arena(Shape(actors=5)) as arena:
        assert arena.size < 2_000_000
        assert Path("/dev/shm", arena.name[1:]).stat().st_blocks * 512 >= arena.size, "allocated in full"


def test_no_two_tables_share_a_lane_and_attached_shapes_agree(arena: Arena) -> None:
    """Tables begin on lanes of their own, in both processes at the same place."""
    other = Arena.attach(arena.name)
    base = np.frombuffer(arena._segment.buf, "u1").ctypes.data
    ends = base
    for table in TABLES:
        view, twin = arena.table(table.name), other.table(table.name)
        assert view.shape == twin.shape
        start = view.ctypes.data
        assert start >= ends
        assert (start - base) % LANE == 0
        ends = start + view.nbytes
    assert (other.shape, other.boot_id, other.start_id) == (arena.shape, "boot", START_ID)
    other.close()


def test_the_log_follows_the_owner_of_the_arena(arena: Arena) -> None:
    """Suppression segments belong to whom the arena belongs, so that actors of another user can map them."""
    if os.getuid() != 0:
        pytest.skip("only root gives files away")
    name = f"/ecm-{os.urandom(6).hex()}"
    owned = Arena.create(name, Shape(2), START_ID, "boot", owner=(65534, 65534))
    try:
        SuppressionLog.create(owned, 0).append(np.zeros(1, ENTRY))
        assert {Path("/dev/shm", s).stat().st_uid for s in segments(name)} == {65534}
    finally:
        owned.close()
        Arena.unlink(name)
