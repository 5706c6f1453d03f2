"""The layout of a ledger file: offsets, and the check that a file is the ledger that was asked for.

```
offset  0       8         16         24      32     40         56           (broker, once)
       | magic | version | campaign | shard | rows | instance | header crc |
        64           72       80                      88                 (whoever opens a lease: the broker)
       | open epoch | holder | leases since progress | boot id, 40 bytes |
        128               216        224      232            240              248                  256  (the holder)
       | counts u8 x 11 | attempts | resent | next attempt | first attempt ns | last conclusion ns | closed epoch |
       ... | 4096: rows, 16 bytes each: word A, word B (ledger_states.py)
```

Numbers are 8-byte little-endian words. What each field means and who may write it stands in ledger.py.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from shm.files.durable import FileDamaged, FileMismatch, check_identity, instance_bytes
from shm.files.ledger_states import States

__all__ = ["LedgerMismatch", "check", "pack_head"]

MAGIC = b"ECMLEDGR"
VERSION = 1
IDENTITY = struct.Struct("<8sQQQQ16s")
HEAD_SIZE = 4096  # a page of its own: rows begin on a page, so a row never spans two
ROW_SIZE = 16
OPEN_EPOCH, HOLDER, SINCE_PROGRESS = 8, 9, 10  # word numbers
BOOT_AT, BOOT_SIZE = 88, 40
SUMMARY, ATTEMPTS, RESENT, NEXT_S, FIRST_NS, LAST_NS, CLOSED_EPOCH = 16, 27, 28, 29, 30, 31, 32
assert IDENTITY.size == 56, "layout is read by other processes: raise VERSION instead"
assert SUMMARY + len(States) == ATTEMPTS, "the summary holds one count a state"


class LedgerMismatch(FileMismatch):
    """The ledger of another instance, campaign or shard, or of another version."""


def pack_head(instance: str, campaign: int, shard: int, rows: int) -> bytes:
    """The identity of a ledger and its checksum: the first 64 bytes. Raises ValueError for no instance id."""
    head = IDENTITY.pack(MAGIC, VERSION, campaign, shard, rows, instance_bytes(instance))
    return head + zlib.crc32(head).to_bytes(8, "little")


def check(path: Path, descriptor: int, instance: str, campaign: int, shard: int) -> int:
    """The number of rows of this ledger.

    Raises LedgerMismatch naming the field (magic, version, instance, campaign, shard), FileDamaged.
    """
    head = os.pread(descriptor, IDENTITY.size + 8, 0)
    size = os.fstat(descriptor).st_size
    if len(head) < IDENTITY.size + 8:
        raise FileDamaged(path, f"{size} bytes cannot hold a ledger")
    magic, version, its_campaign, its_shard, rows, its_instance = IDENTITY.unpack_from(head)
    check_identity(path, {"magic": MAGIC, "version": VERSION}, {"magic": magic, "version": version}, LedgerMismatch)
    if int.from_bytes(head[IDENTITY.size :], "little") != zlib.crc32(head[: IDENTITY.size]):
        raise FileDamaged(path, "the checksum of the header does not match it")
    check_identity(
        path,
        {"instance": instance, "campaign": campaign, "shard": shard},
        {"instance": its_instance.hex(), "campaign": its_campaign, "shard": its_shard},
        LedgerMismatch,
    )
    if size != HEAD_SIZE + ROW_SIZE * rows:
        raise FileDamaged(path, f"{size} bytes long, which is not {rows} rows")
    return int(rows)
