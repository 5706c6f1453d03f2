"""The memory of a rate limit: what one owner (a campaign or a relay) has attempted and may still attempt, in a small
mapped file, so that no death of the broker lets anybody send more than a limit allows.

May not: know a limit or decide anything (`broker/rates.py` is the law); read a clock.

Invariants
- The broker alone writes; `outstanding` grows before a grant is published, and shrinks only after what was spent
  stands in the parts. A crash between any two stores over-counts and never under-counts.
- A process crash loses nothing: the page cache keeps the file. What was outstanding counts as spent at the next open.
- A part holds the attempts of one 256th of its interval, dated by when the broker heard of them, never earlier than
  they were made. The 257 latest parts together hold every attempt of the last interval.
- A power loss may lose any of that, so the live words are believed only on the boot that wrote them. For hours and days
  a *reserve* is synced ahead of use: a snapshot of the parts and a total that `used` may not pass until the next
  snapshot is on the disk. After a power loss everything up to that total counts as spent, at the time of the open.
- Snapshots alternate between two places, each with its checksum, and a place is given up only once the other is known
  to be on the disk. A snapshot is always rewritten whole, so a sync that succeeds after one that failed tells the truth
  about it (the kernel forgets dirty pages when it could not write them).

# offset  0       8         16         32      160    256       296       304       312           320
#         | magic | version | instance | owner | zero | boot_id | mono_ns | wall_ns | outstanding | spent_total |
# offset  4096                        6160                      8224                    12288       20480       28672
#         | minute: newest, 257 parts | hour: newest, 257 parts | day: newest, 257 parts | snapshot 0 | snapshot 1 |
# snapshot | crc32 | sequence | reserved | spent_total | mono_ns | wall_ns | boot_id | hour (258) | day (258) |
# Words are signed and eight bytes long; `newest` is the number of the latest part, monotonic time // its width.
"""

from __future__ import annotations

import mmap
import os
import zlib
from enum import Enum
from pathlib import Path
from typing import Final

from shm.files.durable import FileDamaged, FileMismatch, check_identity, create_full, instance_bytes

__all__ = ["PARTS", "Found", "Parts", "WindowFile"]

MAGIC: Final = b"ECMWINDW"
VERSION: Final = 1
PARTS: Final = 256  # of an interval; one more is kept, since the latest part is never whole
MINUTE_NS: Final = 60 * 10**9
HOUR_NS: Final = 60 * MINUTE_NS
DAY_NS: Final = 24 * HOUR_NS

_OWNER_SIZE, _BOOT_SIZE = 128, 40
_HEAD_SIZE: Final = 160
_BOOT_AT: Final = 256
_MONO, _WALL, _OUTSTANDING, _SPENT = 37, 38, 39, 40  # word numbers
_RING: Final = PARTS + 2  # words: the newest part's number, then 257 parts
_RINGS_AT: Final = 4096 // 8
_SNAPSHOT_AT, _SNAPSHOT_SIZE = (12288, 20480), 8192
_SNAPSHOT_WORDS: Final = 11 + 2 * _RING
_S_CRC, _S_SEQUENCE, _S_RESERVED, _S_SPENT, _S_MONO, _S_WALL, _S_BOOT, _S_RINGS = 0, 1, 2, 3, 4, 5, 6, 11
_SIZE: Final = 28672
assert _BOOT_AT + _BOOT_SIZE == _MONO * 8, "layout is read after a crash by the next broker: raise VERSION instead"
assert _SNAPSHOT_AT[0] >= (_RINGS_AT + 3 * _RING) * 8
assert (_S_RINGS - _S_BOOT) * 8 == _BOOT_SIZE
assert _SNAPSHOT_WORDS * 8 <= _SNAPSHOT_SIZE
assert _SNAPSHOT_AT[1] + _SNAPSHOT_SIZE == _SIZE


class Found(Enum):
    """What an opened file told: nothing (it was made), all of the past, or only what was reserved."""

    NEW = 0
    SAME_BOOT = 1
    POWER_LOST = 2


class Parts:
    """Attempts of the last interval in 257 parts over mapped words.

    total  attempts in the parts kept: at least those of any moment of the last interval
    """

    __slots__ = ("_words", "total", "width_ns")

    def __init__(self, words: memoryview[int], interval_ns: int) -> None:
        assert interval_ns % PARTS == 0
        self._words = words
        self.width_ns = interval_ns // PARTS
        self.total = sum(words[1:].tolist())

    def advance(self, now_ns: int) -> None:
        """Forget the parts that ended an interval before `now_ns` (monotonic) or earlier."""
        words, part = self._words, now_ns // self.width_ns
        newest = words[0]
        if part <= newest:
            return
        for number in range(max(newest + 1, part - PARTS), part + 1):
            place = 1 + number % (PARTS + 1)
            self.total -= words[place]
            words[place] = 0
        words[0] = part

    def add(self, n: int, part: int | None = None) -> None:
        """Count n attempts in the newest part, or in an earlier one that is still kept."""
        newest = self._words[0]
        number = newest if part is None else min(part, newest)
        if number >= newest - PARTS:
            self._words[1 + number % (PARTS + 1)] += n
            self.total += n

    def below_ns(self, most: int) -> int:
        """Return the monotonic time from which at most `most` of what is counted now is still kept."""
        words, newest, left = self._words, self._words[0], self.total
        for number in range(newest - PARTS, newest + 1):
            if left <= most:
                return (number + PARTS) * self.width_ns
            left -= words[1 + number % (PARTS + 1)]
        return (newest + PARTS + 1) * self.width_ns

    def restore(self, ring: list[int], then_ns: int, now_ns: int) -> None:
        """Take over the parts of an earlier boot, `then_ns` on its monotonic clock being `now_ns` on this one.

        A part lands where it ends no earlier than it did, and never in the future.
        """
        for place in range(1, _RING):
            self._words[place] = 0
        self.total = 0
        self._words[0] = now_ns // self.width_ns
        for number in range(ring[0] - PARTS, ring[0] + 1):
            if count := ring[1 + number % (PARTS + 1)]:
                end_ns = (number + 1) * self.width_ns - then_ns + now_ns
                self.add(count, (end_ns - 1) // self.width_ns)


class WindowFile:
    """The words of one owner. Methods store in the order that the invariants ask for; none of them checks a limit.

    minute, hour, day  the parts of the three windows, kept whether there is a limit or not
    chunk              tokens to reserve at a time; 0: no limit of an hour or more, nothing is reserved
    found              what the file told when it was opened
    """

    __slots__ = ("_bytes", "_durable", "_fd", "_place", "_sequence", "_syncing", "_words", "chunk", "day", "found",
                 "hour", "minute")  # fmt: skip

    def __init__(self, buffer: mmap.mmap | bytearray, fd: int, boot_id: str, mono_ns: int, wall_ns: int) -> None:
        """Not for callers: use `open` or `memory`."""
        self._fd = fd
        self._bytes = memoryview(buffer)
        self._words: memoryview[int] = self._bytes.cast("q")
        self._syncing: tuple[int, int] | None = None
        self._place = self._sequence = self._durable = 0
        self.chunk = 0
        self.minute = Parts(self._ring(0), MINUTE_NS)
        self.hour = Parts(self._ring(1), HOUR_NS)
        self.day = Parts(self._ring(2), DAY_NS)
        self.found = self._take_up(boot_id.encode()[:_BOOT_SIZE].ljust(_BOOT_SIZE, b"\0"), mono_ns, wall_ns)

    @classmethod
    def open(cls, path: Path, *, instance: str, owner: str, boot_id: str, mono_ns: int, wall_ns: int) -> WindowFile:
        """Open the file of `owner`, or make it, allocated in full. Syncs: not for the loop.

        boot_id, mono_ns, wall_ns  this boot, and now on its monotonic clock and in engine time: times of an earlier
        boot are carried over by the wall clock
        Raises FileMismatch (magic, version, instance, owner), FileDamaged, OSError.
        """
        new = not path.exists()
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
            create_full(path, _SIZE, _identity(instance, owner))
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _check(path, fd, instance, owner)
            if not new:
                os.fdatasync(fd)  # a snapshot that is in the page cache only is not a reserve yet
            window = cls(mmap.mmap(fd, _SIZE), fd, boot_id, mono_ns, wall_ns)
        except BaseException:
            os.close(fd)
            raise
        if new:
            window.found = Found.NEW
        return window

    @classmethod
    def memory(cls, mono_ns: int = 0) -> WindowFile:
        """Return one without a file: for owners whose past does not matter, and for tests."""
        window = cls(bytearray(_SIZE), -1, "", mono_ns, 0)
        window.found = Found.NEW
        return window

    @property
    def lasting(self) -> bool:
        """Return whether there is a file behind it."""
        return self._fd >= 0

    def close(self) -> None:
        """Let go of the file; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ---- what is out, and what was spent

    @property
    def outstanding(self) -> int:
        """Return the tokens granted and neither spent nor returned."""
        return self._words[_OUTSTANDING]

    @property
    def spent_total(self) -> int:
        """Return the attempts since the file was made."""
        return self._words[_SPENT]

    def grant(self, n: int) -> None:
        """Count n tokens as outstanding: before they are published."""
        self._words[_OUTSTANDING] += n

    def settle(self, now_ns: int, spent: int, returned: int) -> None:
        """Count what became of tokens: heard of at `now_ns`, none of it attempted later."""
        words = self._words
        for parts in (self.minute, self.hour, self.day):
            parts.advance(now_ns)
            if spent:
                parts.add(spent)
        words[_SPENT] += spent
        words[_OUTSTANDING] -= spent + returned
        assert words[_OUTSTANDING] >= 0, "more came back than was granted"

    # ---- the reserve: hours and days survive a power loss

    @property
    def reserve_left(self) -> int:
        """Return the tokens that may still be granted under the reserve that is known to be on the disk."""
        return self._durable - self._words[_SPENT] - self._words[_OUTSTANDING]

    def needs_reserve(self) -> bool:
        """Return whether it is time to reserve: half a chunk is used, and no sync is under way."""
        return self.chunk > 0 and self._syncing is None and 2 * self.reserve_left <= self.chunk

    def reserve(self, mono_ns: int, wall_ns: int) -> None:
        """Write a snapshot that allows one chunk more; it counts once `sync` has returned. For the loop: 4 us."""
        assert self._syncing is None, "one sync at a time"
        used = self._words[_SPENT] + self._words[_OUTSTANDING]
        reserved = max(used + self.chunk, self._durable)
        words = [0, self._sequence + 1, reserved, self._words[_SPENT], mono_ns, wall_ns]
        at = _SNAPSHOT_AT[self._place]
        image = self._bytes[at : at + _SNAPSHOT_WORDS * 8]
        view: memoryview[int] = image.cast("q")
        for index, word in enumerate(words):
            view[index] = word
        image[_S_BOOT * 8 : _S_RINGS * 8] = self._bytes[_BOOT_AT : _BOOT_AT + _BOOT_SIZE]
        view[_S_RINGS : _S_RINGS + _RING] = self._ring(1)
        view[_S_RINGS + _RING :] = self._ring(2)
        view[_S_CRC] = zlib.crc32(image[8:])
        self._syncing = (self._place, reserved)

    def sync(self) -> None:
        """Make the snapshot durable; for a thread, while the loop goes on granting under the reserve before.

        Raises OSError: the reserve stays what it was, and `needs_reserve` asks again, for the same place.
        """
        assert self._syncing is not None, "reserve first"
        place, reserved = self._syncing
        try:
            if self._fd >= 0:
                os.fdatasync(self._fd)
        except OSError:
            self._syncing = None
            raise
        self._place = 1 - place
        self._sequence += 1
        self._durable = reserved
        self._syncing = None

    # ---- taking up what a file holds

    def _ring(self, index: int) -> memoryview[int]:
        at = _RINGS_AT + index * _RING
        return self._words[at : at + _RING]

    def _take_up(self, boot: bytes, mono_ns: int, wall_ns: int) -> Found:
        snapshots = [self._snapshot(place) for place in (0, 1)]
        latest = max((s for s in snapshots if s is not None), key=lambda s: s[_S_SEQUENCE], default=None)
        if latest is not None:
            self._sequence = latest[_S_SEQUENCE]
            self._durable = latest[_S_RESERVED]
            self._place = 1 - snapshots.index(latest)
        if bytes(self._bytes[_BOOT_AT : _BOOT_AT + _BOOT_SIZE]) == boot:
            self.settle(mono_ns, self.outstanding, 0)
            found = Found.SAME_BOOT
        else:
            self._rebuild(latest, mono_ns, wall_ns)
            self._bytes[_BOOT_AT : _BOOT_AT + _BOOT_SIZE] = boot  # last: a crash before it rebuilds once more
            found = Found.POWER_LOST
        self._words[_MONO], self._words[_WALL] = mono_ns, wall_ns
        return found

    def _snapshot(self, place: int) -> list[int] | None:
        at = _SNAPSHOT_AT[place]
        image = self._bytes[at : at + _SNAPSHOT_WORDS * 8]
        words: list[int] = image.cast("q").tolist()
        return words if words[_S_SEQUENCE] and words[_S_CRC] == zlib.crc32(image[8:]) else None

    def _rebuild(self, snapshot: list[int] | None, mono_ns: int, wall_ns: int) -> None:
        """Write the live words anew from a snapshot; without one no window of an hour or more was ever granted from."""
        empty = [0] * _RING
        hour, day, reserved, spent, then_ns = empty, empty, 0, 0, mono_ns
        if snapshot is not None:
            hour, day = snapshot[_S_RINGS : _S_RINGS + _RING], snapshot[_S_RINGS + _RING :]
            reserved, spent = snapshot[_S_RESERVED], snapshot[_S_SPENT]
            then_ns = snapshot[_S_MONO] + max(0, wall_ns - snapshot[_S_WALL])
        self.minute.restore(empty, then_ns, mono_ns)
        self.hour.restore(hour, then_ns, mono_ns)
        self.day.restore(day, then_ns, mono_ns)
        for parts in (self.minute, self.hour, self.day):
            parts.add(reserved - spent)
        self._words[_SPENT] = reserved
        self._words[_OUTSTANDING] = 0


def _identity(instance: str, owner: str) -> bytes:
    head = MAGIC + VERSION.to_bytes(8, "little") + instance_bytes(instance)
    return head + owner.encode()[:_OWNER_SIZE].ljust(_OWNER_SIZE, b"\0")


def _check(path: Path, fd: int, instance: str, owner: str) -> None:
    size = os.fstat(fd).st_size
    if size != _SIZE:
        raise FileDamaged(path, f"a window file has {_SIZE} bytes, this one {size}")
    fields = {"magic": slice(0, 8), "version": slice(8, 16), "instance": slice(16, 32), "owner": slice(32, _HEAD_SIZE)}
    head, wanted = os.pread(fd, _HEAD_SIZE, 0), _identity(instance, owner)
    check_identity(
        path,
        {name: wanted[where].rstrip(b"\0") for name, where in fields.items()},
        {name: head[where].rstrip(b"\0") for name, where in fields.items()},
        FileMismatch,
    )
