"""Window files: what a broker knew, another one takes up; what a power loss took counts as spent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shm.files.durable import FileDamaged, FileMismatch
from shm.files.windows import PARTS, Found, Parts, WindowFile
from tests.fixtures.arena import child

INSTANCE = "ab" * 16
S = 10**9
NOW, WALL = 10**15, 1_790_000_000 * S


def open_file(path: Path, *, boot: str = "boot-1", mono: int = NOW, wall: int = WALL, owner: str = "c") -> WindowFile:
    return WindowFile.open(path, instance=INSTANCE, owner=owner, boot_id=boot, mono_ns=mono, wall_ns=wall)


def test_a_new_file_is_allocated_in_full_and_says_so(tmp_path: Path) -> None:
    """Made with its directory; the next open on the same boot finds all of its past."""
    path = tmp_path / "windows" / "campaign-7"
    file = open_file(path)
    assert file.found is Found.NEW
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    file.close()
    assert open_file(path).found is Found.SAME_BOOT


def test_what_was_outstanding_at_a_crash_counts_as_spent(tmp_path: Path) -> None:
    """A broker killed with tokens out leaves them to the next one as attempts of now."""
    path = tmp_path / "c"
    code = """
import os, signal, sys
from pathlib import Path
from shm.files.windows import WindowFile
now = int(sys.argv[2])
file = WindowFile.open(Path(sys.argv[1]), instance="ab" * 16, owner="c", boot_id="boot-1", mono_ns=now, wall_ns=now)
file.grant(10)
file.settle(now, 4, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert child(code, str(path), str(NOW)).communicate() == ("", "")
    file = open_file(path, mono=NOW + 30 * S)
    assert (file.found, file.outstanding, file.spent_total) == (Found.SAME_BOOT, 0, 9)
    assert [parts.total for parts in (file.minute, file.hour, file.day)] == [9, 9, 9]
    file.minute.advance(NOW + 61 * S)
    assert file.minute.total == 5, "the four from before have left the minute, the five have not"


def test_parts_keep_every_attempt_for_its_interval_and_hardly_longer() -> None:
    """An attempt is counted for a whole interval after it, and for at most two parts more."""
    parts = Parts(memoryview(bytearray(8 * (PARTS + 2))).cast("q"), PARTS * S)
    for at in (NOW, NOW + 17 * S + 1, NOW + 255 * S):
        parts.advance(at)
        parts.add(1)
        kept = parts.total
        for later, expected in ((at + PARTS * S, kept), (at + (PARTS + 2) * S, kept - 1)):
            copy = Parts(memoryview(bytearray(parts._words.tobytes())).cast("q"), PARTS * S)
            copy.advance(later)
            assert copy.total <= expected
        assert parts.below_ns(kept - 1) > NOW + PARTS * S
    copy.advance(NOW + 10_000 * S)
    assert copy.total == 0


def test_only_a_synced_reserve_may_be_used(tmp_path: Path) -> None:
    """A chunk counts once its sync returned; a new one is due when half of it is used."""
    file = open_file(tmp_path / "c")
    assert not file.needs_reserve(), "no limit of an hour or more"
    file.chunk = 100
    assert file.needs_reserve()
    assert file.reserve_left == 0
    file.reserve(NOW, WALL)
    assert file.reserve_left == 0
    file.sync()
    assert file.reserve_left == 100
    file.grant(49)
    assert not file.needs_reserve()
    file.grant(1)
    file.settle(NOW, 30, 0)
    assert file.needs_reserve()
    assert file.reserve_left == 50


def test_a_sync_that_fails_leaves_the_reserve_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's error reaches the caller, nothing more may be used, and the snapshot before is not touched again."""
    path = tmp_path / "c"
    file = open_file(path)
    file.chunk = 100
    file.reserve(NOW, WALL)
    file.sync()
    before = path.read_bytes()

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    file.grant(60)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        for _ in range(2):
            file.reserve(NOW, WALL)
            with pytest.raises(OSError, match="Input/output"):
                file.sync()
            assert file.reserve_left == 40
            assert file.needs_reserve()
    assert path.read_bytes()[12288:20480] == before[12288:20480]
    file.reserve(NOW, WALL)
    file.sync()
    assert file.reserve_left == 100


def test_after_a_power_loss_all_that_was_reserved_counts_as_spent_now(tmp_path: Path) -> None:
    """Attempts before the last snapshot keep their age on the new boot's clock; the rest of the reserve is new."""
    path = tmp_path / "c"
    file = open_file(path)
    file.chunk = 100
    file.grant(30)
    file.settle(NOW, 30, 0)
    file.reserve(NOW + 60 * S, WALL + 60 * S)
    file.sync()
    file.close()
    later = open_file(path, boot="boot-2", mono=5 * S, wall=WALL + 3000 * S)
    assert (later.found, later.outstanding, later.spent_total) == (Found.POWER_LOST, 0, 130)
    assert (later.hour.total, later.day.total, later.minute.total) == (130, 130, 100)
    later.hour.advance(5 * S + 600 * S - 1)
    assert later.hour.total == 130, "the thirty are not an hour old yet"
    later.hour.advance(5 * S + 630 * S)
    assert later.hour.total == 100, "the thirty are an hour old by now"
    later.close()
    again = open_file(path, boot="boot-2", mono=700 * S, wall=WALL + 3700 * S)
    assert (again.found, again.hour.total) == (Found.SAME_BOOT, 100)


def test_a_wall_clock_that_went_back_frees_nothing(tmp_path: Path) -> None:
    """If the new boot's clock says an earlier time, what was spent counts as spent now."""
    path = tmp_path / "c"
    file = open_file(path)
    file.chunk = 10
    file.grant(30)
    file.settle(NOW, 30, 0)
    file.reserve(NOW, WALL)
    file.sync()
    file.close()
    later = open_file(path, boot="boot-2", mono=5 * S, wall=WALL - 86400 * S)
    later.hour.advance(3600 * S)
    assert later.hour.total == 40


def test_a_file_of_another_owner_instance_or_version_is_refused(tmp_path: Path) -> None:
    """The mismatch names the field; a cut file is damaged."""
    path = tmp_path / "c"
    open_file(path).close()
    with pytest.raises(FileMismatch, match=r"owner is b'c', expected b'relay-a'"):
        open_file(path, owner="relay-a")
    with pytest.raises(FileMismatch) as caught:
        WindowFile.open(path, instance="cd" * 16, owner="c", boot_id="b", mono_ns=NOW, wall_ns=WALL)
    assert caught.value.field == "instance"
    data = bytearray(path.read_bytes())
    data[8] += 1
    path.write_bytes(data)
    with pytest.raises(FileMismatch, match="version"):
        open_file(path)
    path.write_bytes(data[:4096])
    with pytest.raises(FileDamaged):
        open_file(path)


def test_a_snapshot_torn_by_the_power_loss_is_not_believed(tmp_path: Path) -> None:
    """If only one page of the latest snapshot reached the disk, the one before it tells what was reserved."""
    path = tmp_path / "c"
    file = open_file(path)
    file.chunk = 100
    file.reserve(NOW, WALL)
    file.sync()
    file.grant(80)
    file.settle(NOW, 80, 0)
    synced = path.read_bytes()
    file.reserve(NOW, WALL)
    file.close()
    torn = bytearray(path.read_bytes())
    torn[24576:] = synced[24576:]  # the second page of the second place, which the day's last parts reach into
    torn[24576] ^= 1
    path.write_bytes(torn)
    later = open_file(path, boot="boot-2", mono=5 * S, wall=WALL + 10 * S)
    assert (later.spent_total, later.hour.total, later.day.total) == (100, 100, 100)
