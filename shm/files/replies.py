"""What relays said when they refused: the texts of replies, beside a ledger that has room for codes only.

An append-only file. The leaseholder appends a refusal before it writes the row's record, and syncs it in the same
group, so a record on the disk has its text there too.

```
file:    magic 8 | version u4 | zero u4 | records
record:  crc32 u4 (of the rest) | kind u1 | number u4 | size u2 | then
  text   kind 1: number = text number, from 0 in order; size bytes of UTF-8
  refusal kind 2: number = row; size = attempt; text number u4
```

Invariants:

- a text is stored once and before the first refusal that names it (a relay may put a running number into its replies:
  only the last TEXTS_MAX distinct texts are remembered, so memory has a bound; beyond it a text may stand twice);
- each record has its own checksum; reading stops at the first that does not match: a crash tears the tail only;
- opening for append cuts a torn tail off first, so nothing is ever written behind one; without a whole head all is
  tail.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from shm.files.durable import check_identity, sync_directory, write_all

__all__ = ["TEXT_MAX", "Replies", "read"]

MAGIC: Final = b"ECMREPLY"
VERSION: Final = 1
HEAD: Final = struct.Struct("<8sII")
CHECKSUM: Final = struct.Struct("<I")
TEXT: Final = struct.Struct("<BIH")
REFUSAL: Final = struct.Struct("<BIHI")
KIND_TEXT: Final = 1
KIND_REFUSAL: Final = 2
TEXT_MAX: Final = 1024  # bytes; RFC 5321 4.5.3.1.5 allows 512 a line, and a reply of many lines says little after two
TEXTS_MAX: Final = 4096  # 4 MB a held shard at most
ATTEMPT_MAX: Final = 0xFFFF


class Replies:
    """The replies of one shard, for append. The file is made with the first flush: most shards need none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._size = 0  # what of the file is known to be whole
        self._buffer = bytearray()
        self._texts: dict[str, int] = {}
        self._next = 0
        self._loaded = False

    def append(self, row: int, attempt: int, text: str) -> None:
        """Buffer one refusal: about 2 us. `text` beyond 1 kB of UTF-8 is cut.

        Raises FileMismatch or OSError at the first call, if what stands at the path cannot be read.
        """
        if not self._loaded:
            self._load()
        number = self._texts.get(text)
        if number is None:
            number = self._add_text(_cut(text))
        body = REFUSAL.pack(KIND_REFUSAL, row, min(attempt, ATTEMPT_MAX), number)
        self._buffer += CHECKSUM.pack(zlib.crc32(body)) + body

    def flush(self) -> None:
        """Hand what is buffered to the kernel. Raises OSError; then the buffer is kept and the file is as before."""
        if not self._buffer:
            return
        if self._descriptor < 0:
            self._open()
        try:
            write_all(self._descriptor, self._buffer)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(self._buffer)
        self._buffer.clear()

    def sync(self) -> None:
        """Make what was flushed durable. From any thread. Raises OSError."""
        if self._descriptor >= 0:
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Flush and close; nothing is synced. Raises OSError if the last texts were not taken: closed all the same."""
        try:
            self.flush()
        finally:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _add_text(self, text: str) -> int:
        known = self._texts.get(text)
        if known is not None:
            return known  # a longer text, the same once cut
        raw = text.encode()
        number = self._next
        body = TEXT.pack(KIND_TEXT, number, len(raw)) + raw
        self._buffer += CHECKSUM.pack(zlib.crc32(body)) + body
        self._remember(text, number)
        return number

    def _remember(self, text: str, number: int) -> None:
        if len(self._texts) >= TEXTS_MAX:
            self._texts.clear()
        self._texts[text] = number
        self._next = number + 1

    def _load(self) -> None:
        """Learn the texts of an earlier lease, and where its last whole record ends."""
        data = _content(self.path)
        self._size = HEAD.size if data else 0
        for end, record in _records(data):
            self._size = end
            if isinstance(record, _Text):
                self._remember(record.text, record.number)
        self._loaded = True

    def _open(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, self._size)
            if self._size == 0:
                write_all(descriptor, HEAD.pack(MAGIC, VERSION, 0))
                self._size = HEAD.size
                sync_directory(self.path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor


def read(path: Path) -> dict[int, list[tuple[int, str]]]:
    """All refusals of a shard: {row: [(attempt, text), ...]} in the order they came; empty if there is no file.

    Raises FileMismatch if the file is something else. A torn tail is left out.
    """
    texts: dict[int, str] = {}
    refusals: dict[int, list[tuple[int, str]]] = {}
    for _end, record in _records(_content(path)):
        if isinstance(record, _Text):
            texts[record.number] = record.text
        else:
            refusals.setdefault(record.row, []).append((record.attempt, texts[record.text]))
    return refusals


class _Text(NamedTuple):
    number: int
    text: str


class _Refusal(NamedTuple):
    row: int
    attempt: int
    text: int


def _content(path: Path) -> bytes:
    """The whole file; empty if there is none or not even its head is whole.

    A head of zeros is torn too: after a power loss a file may have its length and not its bytes.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    if len(data) < HEAD.size or not any(data[: HEAD.size]):
        return b""
    magic, version, _zero = HEAD.unpack_from(data)
    check_identity(path, {"magic": MAGIC, "version": VERSION}, {"magic": magic, "version": version})
    return data


def _records(data: bytes) -> Iterator[tuple[int, _Text | _Refusal]]:
    """(offset behind it, record) for each whole record; ends at the first torn one."""
    at = HEAD.size
    while at + CHECKSUM.size + TEXT.size <= len(data):
        begin = at + CHECKSUM.size
        kind, number, size = TEXT.unpack_from(data, begin)
        end = begin + (TEXT.size + size if kind == KIND_TEXT else REFUSAL.size)
        if end > len(data) or CHECKSUM.unpack_from(data, at)[0] != zlib.crc32(data[begin:end]):
            return
        at = end
        if kind == KIND_TEXT:
            yield end, _Text(number, data[begin + TEXT.size : end].decode())
        else:
            yield end, _Refusal(number, size, REFUSAL.unpack_from(data, begin)[3])


def _cut(text: str) -> str:
    """At most TEXT_MAX bytes of UTF-8, whole characters; what cannot be encoded becomes a question mark."""
    return text.encode("utf-8", "replace")[:TEXT_MAX].decode("utf-8", "ignore")
