"""A shard: some thousand recipients of one campaign, written once by the loader and mapped by whoever leases it.

```
offset  0       8         16         24      32     40         56          64          72         80            88
       | magic | version | campaign | shard | rows | instance | file size | body crc  | group len | group utf-8 |
       ... | 504 header crc | 512: offsets i8 x (rows + 1) | keys 16 bytes x rows | records: one msgpack map per row |
```

All numbers are 8-byte little-endian words, so offsets and keys are aligned and read in place.

Invariants:

- the file is whole or absent (durable.py) and never changes: row n of the shard is row n of its ledger for ever;
- every recipient of a shard belongs to one recipient-domain group, so a lease falls under one fixed set of windows;
- a record is a map {column: text} and holds, under `_line`, the number of the line it came from;
- the checksums cover every byte; a file of another instance, campaign or shard is refused by the name of the field.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import numpy.typing as npt

from shm.files.durable import FileDamaged, check_identity, instance_bytes, replace_file

__all__ = ["GROUP_OTHER", "LINE_FIELD", "Shard", "ShardWriter"]

MAGIC = b"ECMSHARD"
VERSION = 1
HEAD = struct.Struct("<8sQQQQ16sQQQ")  # magic .. length of the group
HEAD_SIZE = 512
GROUP_MAX = 400  # bytes; the longest domain has 253
CHECKSUM = struct.Struct("<Q")
CHECKSUM_AT = HEAD_SIZE - CHECKSUM.size
KEY_SIZE = 16
GROUP_OTHER = "other"
LINE_FIELD = "_line"
_unpackb = msgpack.unpackb
assert HEAD.size == 80, "layout is read by other processes: raise VERSION instead"
assert HEAD.size + GROUP_MAX <= CHECKSUM_AT


class ShardWriter:
    """Collects the rows of one shard and writes them at once: a shard is small (10,000 rows by default)."""

    def __init__(self, path: Path, *, instance: str, campaign: int, shard: int, group: str = GROUP_OTHER) -> None:
        self._path = path
        self._instance = instance_bytes(instance)
        self._campaign = campaign
        self._shard = shard
        self._group = group.encode()
        if len(self._group) > GROUP_MAX:
            raise ValueError(f"a group's name has at most {GROUP_MAX} bytes, not {len(self._group)}")
        self._keys = bytearray()
        self._records: list[bytes] = []

    def add(self, key: bytes, record: bytes) -> None:
        """Add one recipient: the 16-byte key of the address (shm/address.py) and its packed map."""
        self.add_many(key, [record])

    def add_many(self, keys: bytes, records: list[bytes]) -> None:
        """Add recipients in order: their keys end to end, and their packed maps."""
        assert len(keys) == KEY_SIZE * len(records), "one 16-byte key a record"
        self._keys += keys
        self._records += records

    @property
    def rows(self) -> int:
        """Recipients added so far."""
        return len(self._records)

    def finish(self) -> int:
        """Write the file durably and return its number of rows. Raises OSError; then nothing stands at the path."""
        rows = len(self._records)
        begin = HEAD_SIZE + 8 * (rows + 1) + KEY_SIZE * rows
        offsets = np.fromiter(accumulate(map(len, self._records), initial=begin), np.int64, rows + 1).tobytes()
        body = b"".join((offsets, self._keys, *self._records))  # in one piece: its checksum needs no GIL then
        checksum = zlib.crc32(body)
        size = begin - len(offsets) - len(self._keys) + len(body)
        words = (MAGIC, VERSION, self._campaign, self._shard, rows, self._instance, size, checksum, len(self._group))
        head = (HEAD.pack(*words) + self._group).ljust(CHECKSUM_AT, b"\0")
        head += CHECKSUM.pack(zlib.crc32(head))
        replace_file(self._path, [head, body])
        return rows


class Shard:
    """A mapped shard, read only. `rows`, `group` and `keys` are attributes; rows are numbered from 0.

    keys   u8 array of shape (rows, 2): the 16-byte keys as two words each, in place in the mapping
    """

    def __init__(self, path: Path, mapping: mmap.mmap, rows: int, group: str) -> None:
        self.path = path
        self.rows = rows
        self.group = group
        self._map = mapping
        self._offsets = memoryview(mapping)[HEAD_SIZE : HEAD_SIZE + 8 * (rows + 1)].cast("q")
        keys = np.frombuffer(mapping, np.uint64, 2 * rows, HEAD_SIZE + 8 * (rows + 1))
        self.keys: npt.NDArray[np.uint64] = keys.reshape(rows, 2)

    @classmethod
    def open(cls, path: Path, *, instance: str, campaign: int, shard: int) -> Shard:
        """Map the shard and check every byte of it (about 0.3 ms a megabyte): once a lease, never per message.

        Raises FileMismatch naming the field (magic, version, instance, campaign, shard), FileDamaged, OSError.
        """
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < HEAD_SIZE:
                raise FileDamaged(path, f"{size} bytes cannot hold a shard")
            mapping = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
        try:
            rows, group = _check(path, mapping, instance_bytes(instance), campaign, shard)
        except BaseException:
            mapping.close()
            raise
        return cls(path, mapping, rows, group)

    def record(self, row: int) -> bytes:
        """The packed map of one recipient."""
        offsets = self._offsets
        return self._map[offsets[row] : offsets[row + 1]]

    def fields(self, row: int) -> dict[str, Any]:
        """The map of one recipient: {column: text}, and `_line`, the number of its line in the source file."""
        offsets = self._offsets  # hot: `record`, without a call
        fields: dict[str, Any] = _unpackb(self._map[offsets[row] : offsets[row + 1]])
        return fields

    def close(self) -> None:
        """Give the mapping back. An array of keys that somebody still holds keeps it until that one goes too."""
        self._offsets.release()
        self.keys = np.empty((0, 2), np.uint64)
        try:
            self._map.close()
        except BufferError:
            return  # the last view unmaps it; to pull the memory from under a reader would be a crash


def _check(path: Path, mapping: mmap.mmap, instance: bytes, campaign: int, shard: int) -> tuple[int, str]:
    head = mapping[:HEAD_SIZE]
    magic, version, its_campaign, its_shard, rows, its_instance, size, checksum, group_length = HEAD.unpack_from(head)
    check_identity(path, {"magic": MAGIC, "version": VERSION}, {"magic": magic, "version": version})
    if CHECKSUM.unpack_from(head, CHECKSUM_AT)[0] != zlib.crc32(head[:CHECKSUM_AT]):
        raise FileDamaged(path, "the checksum of the header does not match it")
    check_identity(
        path,
        {"instance": instance.hex(), "campaign": campaign, "shard": shard},
        {"instance": its_instance.hex(), "campaign": its_campaign, "shard": its_shard},
    )
    if size != len(mapping):
        raise FileDamaged(path, f"{len(mapping)} bytes long, written with {size}")
    with memoryview(mapping) as whole, whole[HEAD_SIZE:] as body:
        if zlib.crc32(body) != checksum:
            raise FileDamaged(path, "the checksum of the recipients does not match them")
    return rows, head[HEAD.size : HEAD.size + group_length].decode()
