"""Files that are whole or absent: the one place where this house creates, replaces and distrusts a lasting file.

A file is written under a temporary name, filled, fsynced, renamed, and its directory fsynced. So:

- a name that does not end in `.tmp` never shows half a file, whatever the moment of a crash or a power loss;
- a file that will be mapped is allocated in full when it is made: a full disk is an `OSError` then and there, and
  never a SIGBUS in the middle of a campaign;
- a failed creation leaves nothing behind.

What is found in a file is never trusted: `FileMismatch` names the header field that shows that this is another file
than the one asked for, `FileDamaged` says what cannot be read. Nothing here knows what the files mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

__all__ = [
    "FileDamaged",
    "FileFault",
    "FileMismatch",
    "check_identity",
    "create_full",
    "instance_bytes",
    "replace_file",
    "sync_directory",
    "write_all",
]

TEMPORARY = ".tmp"  # what starts with a file's name and ends so was never finished and may be removed
MODE = 0o600


class FileFault(Exception):  # noqa: N818 - a fault of a file, as in tests/faults
    """A file of a campaign cannot be used as what it should be.

    path   the file
    """

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class FileMismatch(FileFault):
    """A whole file, but not the one that was asked for.

    field      name of the first header field that differs: magic, version, instance, campaign, shard
    expected   what the caller wanted there
    found      what the file says
    """

    def __init__(self, path: Path, field: str, expected: object, found: object) -> None:
        super().__init__(path, f"{field} is {found!r}, expected {expected!r}")
        self.field = field
        self.expected = expected
        self.found = found


class FileDamaged(FileFault):
    """A file whose checksum, length or content cannot be right."""


def check_identity(
    path: Path,
    expected: Mapping[str, object],
    found: Mapping[str, object],
    error: type[FileMismatch] = FileMismatch,
) -> None:
    """Raise `error` for the first field of `expected`, in its order, that `found` says otherwise."""
    for field, wanted in expected.items():
        if found[field] != wanted:
            raise error(path, field, wanted, found[field])


def instance_bytes(instance: str) -> bytes:
    """The 16 bytes of an instance id, which is written as 32 hexadecimal digits.

    Raises ValueError if it is anything else.
    """
    raw = bytes.fromhex(instance)
    if len(raw) != 16:
        raise ValueError(f"an instance id has 32 hexadecimal digits, not {instance!r}")
    return raw


def replace_file(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Put a file of these bytes at `path`, durably, replacing what stood there.

    Raises OSError (disk full, not writable); then `path` is untouched.
    """

    def fill(descriptor: int) -> None:
        for chunk in chunks:
            write_all(descriptor, chunk)

    _make(path, fill)


def create_full(path: Path, size: int, head: bytes) -> None:
    """Put a file of `size` bytes at `path`, durably: `head`, then zeros, every block of it allocated.

    Raises OSError (ENOSPC when the disk cannot hold it whole); then `path` is untouched.
    """

    def fill(descriptor: int) -> None:
        os.posix_fallocate(descriptor, 0, size)
        write_all(descriptor, head)

    _make(path, fill)


def sync_directory(path: Path) -> None:
    """Make the names in directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data`; a short write is carried on. Raises OSError, after which any part of it may be written."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _make(path: Path, fill: Callable[[int], None]) -> None:
    temporary = path.with_name(path.name + TEMPORARY)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE)
    try:
        try:
            fill(descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
