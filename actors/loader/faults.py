"""What the system refuses, in the words of the error a user sees."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.contract.errors import EcmError

__all__ = ["explain_errno"]


@contextmanager
def explain_errno(place: Path) -> Iterator[None]:
    """Raise EcmError disk_full, state_unwritable or io_failed, naming `place`, for an OSError of the block."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise EcmError("disk_full", "no space left", file=str(place), hint="free some space") from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise EcmError("state_unwritable", f"cannot write: {error.strerror}", file=str(place)) from error
        raise EcmError("io_failed", f"reading or writing failed: {error}", file=str(place)) from error
