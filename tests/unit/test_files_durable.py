"""Files that are whole or absent: creation, replacement, and what a failure leaves."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm.files.durable import FileMismatch, check_identity, create_full, instance_bytes, replace_file


def test_a_created_file_is_allocated_in_full_before_it_has_its_name(tmp_path: Path) -> None:
    """Every block of a file that will be mapped exists on the disk: 1 MB of size is 1 MB of blocks."""
    path = tmp_path / "ledger"
    create_full(path, 1 << 20, b"head")
    status = path.stat()
    assert status.st_size == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20
    assert path.read_bytes()[:6] == b"head\0\0"
    assert status.st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """When the content cannot be written to its end, the name still shows the old content and no temporary stays."""
    path = tmp_path / "bundle"
    replace_file(path, [b"old"])

    def chunks() -> Iterator[bytes]:
        yield b"new"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        replace_file(path, chunks())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_disk_that_cannot_hold_the_whole_file_is_an_error_when_it_is_made(tmp_path: Path) -> None:
    """Allocation beyond what the file system can hold raises at once and leaves no file."""
    with pytest.raises(OSError, match=r"No space left|File too large"):
        create_full(tmp_path / "ledger", 1 << 62, b"head")
    assert os.listdir(tmp_path) == []


def test_a_temporary_file_of_an_earlier_crash_does_not_stand_in_the_way(tmp_path: Path) -> None:
    """A half-written temporary file is overwritten whole by the next writer of the same name."""
    (tmp_path / "bundle.tmp").write_bytes(b"half of something much longer")
    replace_file(tmp_path / "bundle", [b"whole"])
    assert os.listdir(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle").read_bytes() == b"whole"


def test_a_mismatch_names_the_first_field_that_differs(tmp_path: Path) -> None:
    """The error says which field is wrong, what it is and what it should be."""
    with pytest.raises(FileMismatch) as raised:
        check_identity(tmp_path, {"campaign": 7, "shard": 1}, {"campaign": 8, "shard": 2})
    assert (raised.value.field, raised.value.expected, raised.value.found) == ("campaign", 7, 8)
    assert str(raised.value) == f"{tmp_path}: campaign is 8, expected 7"


@pytest.mark.parametrize("text", ["", "ab", "zz" * 16, "ab" * 17])
def test_an_instance_id_is_32_hexadecimal_digits(text: str) -> None:
    """Anything else is a fault of the caller."""
    with pytest.raises(ValueError, match="hexadecimal"):
        instance_bytes(text)
