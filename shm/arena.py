"""The arena: one shared memory segment per instance, holding every table of `shm/live`.

The broker makes it, actors attach to it by name. It is gone at reboot, and removed by the broker that ends or by the
next one that starts; nothing in it is ever needed to account for a recipient (files are).

May not: know what any table means; import anything but the standard library, numpy, msgpack and `shm`.

Invariants
- The header's magic is stored last: who can attach sees a complete directory.
- A process attaches only to the layout it was built for and, when it says which, to the start that it belongs to.
- Offsets come from the directory in the header; sizes must equal those of the code that reads.

# offset  0        8          12         16        32        72       80      88       96           4096
#         | magic  | version  | dir_size | start_id | boot_id | actors | slots | relays | directory  | tables ...
# writer: the broker, once. directory: msgpack list of [table, offset, record size, records], `dir_size` bytes.
"""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import numpy.typing as npt

from shm.live.layout import LAYOUT_VERSION, Shape, Table, align
from shm.live.tables import TABLES
from shm.segment import Segment, ShmFull, names, unlink

__all__ = ["LAYOUT_VERSION", "Arena", "ArenaMismatch", "Shape", "ShmFull"]

MAGIC = b"ECMARENA"
HEADER_SIZE = 4096
HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("dir_size", "<u4"),
        ("start_id", "S16"),
        ("boot_id", "S40"),
        ("actors", "<i8"),
        ("slots", "<i8"),
        ("relays", "<i8"),
    ],
)
assert HEADER.itemsize == 96, "layout is read by other processes: raise LAYOUT_VERSION instead"
assert HEADER.fields is not None
assert HEADER.fields["actors"][1] == 72

_BY_NAME: dict[str, Table] = {table.name: table for table in TABLES}


class ArenaMismatch(ValueError):  # noqa: N818
    """The segment is not the arena that was asked for; the text names the field, what it holds and what it should."""

    def __init__(self, name: str, field: str, found: object, wanted: object) -> None:
        super().__init__(f"arena `{name}`: {field} is {found!r}, expected {wanted!r}")
        self.field = field


def _segment_name(name: str) -> str:
    """Return the segment's name for an arena's ("/ecm-..." -> "ecm-...")."""
    return name.lstrip("/")


def _lay_out(shape: Shape) -> tuple[list[list[Any]], int]:
    """Return the directory for `shape` and the size of the whole segment."""
    directory: list[list[Any]] = []
    end = HEADER_SIZE
    for table in TABLES:
        size = table.size(shape)
        directory.append([table.name, end, table.dtype.itemsize, size // table.dtype.itemsize])
        end = align(end + size)
    return directory, end


class Arena:
    """The tables of one start of the engine, mapped.

    Made by `create` (broker) or `attach` (actors). Views handed out by `table` and `words` stay valid after `close`;
    the memory is unmapped when the last of them is dropped.
    """

    __slots__ = ("_offsets", "_segment", "boot_id", "name", "shape", "start_id")

    def __init__(self, segment: Segment, name: str, shape: Shape, start_id: str, boot_id: str) -> None:
        """Not for callers: use `create` or `attach`."""
        self._segment = segment
        self._offsets = {entry[0]: entry[1] for entry in _lay_out(shape)[0]}
        self.name = name
        self.shape = shape
        self.start_id = start_id
        self.boot_id = boot_id

    @classmethod
    def create(
        cls,
        name: str,
        shape: Shape,
        start_id: str,
        boot_id: str,
        owner: tuple[int, int] | None = None,
    ) -> Arena:
        """Make the arena, allocated in full and all zeros.

        name      "/ecm-" and 12 hex digits; also the stem of its suppression segments
        start_id  at most 16 ASCII characters (12 hex digits); boot_id  at most 40
        owner     (uid, gid) that actors will run as, if not the caller's
        Raises ShmFull (nothing is left behind) and FileExistsError.
        """
        assert len(start_id) <= 16, start_id
        assert len(boot_id) <= 40, boot_id
        directory, size = _lay_out(shape)
        packed = msgpack.packb(directory)
        assert HEADER.itemsize + len(packed) <= HEADER_SIZE, "the directory outgrew the header"
        segment = Segment.create(_segment_name(name), size, owner)
        segment.buf[HEADER.itemsize : HEADER.itemsize + len(packed)] = packed
        header = np.frombuffer(segment.buf, HEADER, 1)[0]
        header["version"] = LAYOUT_VERSION
        header["dir_size"] = len(packed)
        header["start_id"] = start_id.encode()
        header["boot_id"] = boot_id.encode()
        header["actors"], header["slots"], header["relays"] = shape.actors, shape.slots, shape.relays
        header["magic"] = MAGIC
        return cls(segment, name, shape, start_id, boot_id)

    @classmethod
    def attach(cls, name: str, start_id: str | None = None) -> Arena:
        """Map an existing arena and check that it is the one meant.

        start_id  refuse an arena of another start; None takes any
        Raises FileNotFoundError if there is none, ArenaMismatch if it is another.
        """
        segment = Segment.open(_segment_name(name))
        try:
            return cls._checked(segment, name, start_id)
        except ArenaMismatch:
            segment.close()
            raise

    @classmethod
    def _checked(cls, segment: Segment, name: str, start_id: str | None) -> Arena:
        if segment.size < HEADER_SIZE:
            raise ArenaMismatch(name, "size", segment.size, f"at least {HEADER_SIZE}")
        header = np.frombuffer(segment.buf[: HEADER.itemsize].tobytes(), HEADER, 1)[0]
        found_start, found_boot = header["start_id"].decode(), header["boot_id"].decode()
        if header["magic"] != MAGIC:
            raise ArenaMismatch(name, "magic", bytes(header["magic"]), MAGIC)
        if header["version"] != LAYOUT_VERSION:
            raise ArenaMismatch(name, "layout version", int(header["version"]), LAYOUT_VERSION)
        if start_id is not None and found_start != start_id:
            raise ArenaMismatch(name, "start id", found_start, start_id)
        shape = Shape(int(header["actors"]), int(header["slots"]), int(header["relays"]))
        packed = bytes(segment.buf[HEADER.itemsize : HEADER.itemsize + int(header["dir_size"])])
        directory, size = _lay_out(shape)
        found = msgpack.unpackb(packed)
        if found != directory:
            raise ArenaMismatch(name, "table directory", found, directory)
        if segment.size < size:
            raise ArenaMismatch(name, "size", segment.size, size)
        return cls(segment, name, shape, found_start, found_boot)

    @property
    def size(self) -> int:
        """Return the bytes mapped, suppression segments not included."""
        return self._segment.size

    def owner(self) -> tuple[int, int]:
        """Return (uid, gid) of the arena, which its suppression segments share."""
        return self._segment.owner()

    def table(self, name: str) -> npt.NDArray[np.void]:
        """Return a table as a writable structured array over the arena's memory."""
        table = _BY_NAME[name]
        shape = table.shape(self.shape)
        count = table.size(self.shape) // table.dtype.itemsize
        return np.frombuffer(self._segment.buf, table.dtype, count, self._offsets[name]).reshape(shape)

    def words(self, name: str) -> memoryview[int]:
        """Return a table as signed eight-byte words (0.1 us a store): the only way for hot writes."""
        offset = self._offsets[name]
        return self._segment.buf[offset : offset + _BY_NAME[name].size(self.shape)].cast("q")

    def close(self) -> None:
        """Let go of the arena; views stay valid until they are dropped. Safe to call twice."""
        self._segment.close()

    @staticmethod
    def unlink(name: str) -> None:
        """Remove an arena and its suppression segments from /dev/shm, those of a crashed broker too.

        What does not exist is no error. Processes that mapped them keep them.
        """
        stem = _segment_name(name)
        assert stem, "an empty name would match every segment of the machine"
        for segment in names(f"{stem}.s"):
            unlink(segment)
        unlink(stem)
