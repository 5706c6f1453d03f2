"""A message as it arrives at the rehearsal server: after DATA until the dot, or in chunks (RFC 3030), cut anywhere.

Sans-IO: a buffer and a position in, a new position out. Hot: a body that lies whole in one read is copied once.

Invariants
- It never holds more than `size_max` bytes; what is beyond is counted and forgotten.
- A chunk is read to its end whatever has been said about it.
"""

from __future__ import annotations

__all__ = ["Body"]

_END = b"\r\n.\r\n"


class Body:
    """The body of one message after the other.

    dotted    DATA was answered with 354: bytes are a body until a line with a dot alone
    left      bytes of the chunk under way that are still to come; None = no chunk is under way
    chunked   a BDAT was taken in this transaction
    """

    __slots__ = ("_held", "_size", "_size_max", "_wanted", "chunked", "dotted", "last", "left")

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._held = bytearray()  # of a body that is not here whole
        self._size = 0
        self._wanted = True
        self.dotted = False
        self.chunked = False
        self.left: int | None = None
        self.last = False

    @property
    def too_big(self) -> bool:
        """True once more has come than a message may have."""
        return self._size > self._size_max

    def begin_chunk(self, size: int, *, last: bool, wanted: bool) -> None:
        """So many bytes follow; with `wanted` they belong to the message, else they are read and forgotten."""
        self.left, self.last = size, last
        self._wanted = wanted
        if wanted:
            self.chunked = True
            self._size += size
            if self.too_big:
                self._wanted = False
                self._held.clear()

    def take_chunk(self, buffer: bytes, position: int) -> int:
        """Take what is here of a chunk; returns the new position. `left` is 0 when the chunk is complete."""
        assert self.left is not None
        stop = min(position + self.left, len(buffer))
        if self._wanted:
            self._held += memoryview(buffer)[position:stop]
        self.left -= stop - position
        return stop

    def take_dotted(self, buffer: bytes, position: int) -> tuple[int, bytes | None]:
        """Take what is here before the dot: (new position, the body, still dot-stuffed, once it is whole)."""
        if not self._size and buffer.startswith(b".\r\n", position):
            return position + 3, b""
        stop = buffer.find(_END, position)
        if stop < 0:
            keep = max(position, len(buffer) - 4)  # the end may lie across two reads
            self._hold(buffer, position, keep)
            return keep, None
        if not self._size:
            self._size = size = stop + 2 - position
            return stop + 5, b"" if size > self._size_max else buffer[position : stop + 2]
        self._hold(buffer, position, stop + 2)
        return stop + 5, self.held()

    def _hold(self, buffer: bytes, start: int, stop: int) -> None:
        self._size += stop - start
        if self.too_big:
            self._held.clear()
        else:
            self._held += memoryview(buffer)[start:stop]

    def held(self) -> bytes:
        """What has been taken of the message."""
        return bytes(self._held)

    def reset(self) -> None:
        """Forget the message."""
        if self._held:
            self._held = bytearray()
        self._size = 0
        self.dotted = self.chunked = False
        self.left = None
