"""Replies: every refusal is found again, each text stands once, a torn tail hurts nobody."""

import errno
import os
from pathlib import Path

import pytest

from shm.files import replies
from shm.files.durable import FileMismatch
from shm.files.replies import TEXT_MAX, Replies

GREY = "450 4.7.1 greylisted, come back later"
FULL = "452 4.2.2 mailbox full ü"


def test_refusals_are_read_back_by_row_in_order(tmp_path: Path) -> None:
    """A row has all its refusals, with their attempts, in the order they came."""
    path = tmp_path / "shard.replies"
    log = Replies(path)
    log.append(5, 1, GREY)
    log.append(6, 1, FULL)
    log.append(5, 2, FULL)
    log.flush()
    log.sync()
    log.close()
    assert replies.read(path) == {5: [(1, GREY), (2, FULL)], 6: [(1, FULL)]}


def test_a_text_stands_once_in_a_file_across_leases(tmp_path: Path) -> None:
    """A second holder that appends to the file names the texts that are there already."""
    path = tmp_path / "shard.replies"
    for lease in range(3):
        log = Replies(path)
        for row in range(100):
            log.append(row, lease, GREY)
        log.close()
    assert path.read_bytes().count(GREY.encode()) == 1
    assert replies.read(path)[99] == [(0, GREY), (1, GREY), (2, GREY)]


def test_a_shard_without_refusals_has_no_file(tmp_path: Path) -> None:
    """Flush, sync and close of nothing make no file, and reading none gives no refusal."""
    log = Replies(tmp_path / "shard.replies")
    log.flush()
    log.sync()
    log.close()
    assert os.listdir(tmp_path) == []
    assert replies.read(tmp_path / "shard.replies") == {}


def test_a_text_is_cut_at_a_kilobyte_between_characters(tmp_path: Path) -> None:
    """A reply of many lines is kept to 1024 bytes of whole characters, and two that differ beyond are one text."""
    path = tmp_path / "shard.replies"
    log = Replies(path)
    log.append(1, 1, "ü" * 2000)
    log.append(2, 1, "ü" * 3000)
    log.append(3, 1, "\udc80 not text")
    log.close()
    found = replies.read(path)
    assert found[1] == found[2] == [(1, "ü" * (TEXT_MAX // 2))]
    assert found[3] == [(1, "? not text")]
    assert path.stat().st_size < 1200


def test_wherever_the_tail_is_torn_the_whole_records_before_it_are_read_and_kept(tmp_path: Path) -> None:
    """For every possible length of the file: reading gives a prefix, and appending goes on behind it."""
    whole = tmp_path / "whole"
    log = Replies(whole)
    for row in range(4):
        log.append(row, 1, f"{GREY} {row % 2}")
    log.close()
    data = whole.read_bytes()
    everything = list(replies.read(whole).items())
    path = tmp_path / "torn"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        before = list(replies.read(path).items())
        assert before == everything[: len(before)]
        log = Replies(path)
        log.append(9, 2, f"{GREY} 1")
        log.close()
        assert list(replies.read(path).items()) == [*before, (9, [(2, f"{GREY} 1")])]


def test_reading_stops_at_a_damaged_record(tmp_path: Path) -> None:
    """A flipped byte in a record hides that record and what follows, and invents nothing."""
    path = tmp_path / "shard.replies"
    log = Replies(path)
    for row in range(3):
        log.append(row, 1, GREY)
    log.close()
    data = path.read_bytes()
    whole = list(replies.read(path).items())
    for at in range(16, len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        found = list(replies.read(path).items())
        assert found == whole[: len(found)]
        assert len(found) < 3


def test_another_file_is_refused(tmp_path: Path) -> None:
    """A file that is not a reply log is neither read nor appended to."""
    path = tmp_path / "shard.replies"
    path.write_bytes(b"recipients, not replies at all")
    with pytest.raises(FileMismatch, match="magic"):
        replies.read(path)
    with pytest.raises(FileMismatch, match="magic"):
        Replies(path).append(1, 1, GREY)
    assert path.read_bytes() == b"recipients, not replies at all"


def test_a_full_disk_leaves_no_half_record_and_loses_nothing_that_is_buffered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails half way is taken back; the next flush writes the buffer whole."""
    path = tmp_path / "shard.replies"
    log = Replies(path)
    log.append(1, 1, GREY)
    log.flush()
    size = path.stat().st_size
    log.append(2, 1, FULL)

    def half(descriptor: int, data: bytes) -> None:
        os.write(descriptor, bytes(data)[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(replies, "write_all", half)
        with pytest.raises(OSError, match="No space left"):
            log.flush()
    assert path.stat().st_size == size
    log.close()
    assert replies.read(path) == {1: [(1, GREY)], 2: [(1, FULL)]}


def test_memory_for_texts_is_bounded_when_every_reply_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay with a running number in its replies is logged whole while few texts are remembered."""
    monkeypatch.setattr(replies, "TEXTS_MAX", 10)
    path = tmp_path / "shard.replies"
    log = Replies(path)
    for row in range(100):
        log.append(row, 1, f"{GREY} id={row}")
        assert len(log._texts) <= 10
    log.close()
    assert replies.read(path) == {row: [(1, f"{GREY} id={row}")] for row in range(100)}


@pytest.mark.parametrize("size", [8, 16, 4096])
def test_a_file_of_zeros_is_torn_from_its_head_on(tmp_path: Path, size: int) -> None:
    """As a power loss may leave it: nothing can be read, and what is appended can."""
    path = tmp_path / "shard.replies"
    path.write_bytes(bytes(size))
    assert replies.read(path) == {}
    log = Replies(path)
    log.append(1, 1, GREY)
    log.close()
    assert replies.read(path) == {1: [(1, GREY)]}
