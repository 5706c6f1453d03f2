"""A recipients file as blocks of whole lines: opened, measured, and judged to be text.

It may not know what is in a line. Nothing here keeps more than one block.

Invariants
- A block is valid UTF-8 without NUL bytes, ends with a line feed, and knows the number of its first line.
- A line ends with a line feed when its block leaves here: the CR LF of Windows and the lone CR of old Macs are
  translated.
- A file above `MMAP_BYTES` is mapped, not read, and pages already passed are given back, so memory stays flat
  whatever the file's size. A file that becomes shorter under the mapping is an error, never a SIGBUS.
- What is wrong with the file is said with its name, line and column, and how to mend it.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from broker.contract.errors import EcmError
from broker.contract.userfile import open_named

__all__ = ["BLOCK_BYTES", "LINE_BYTES_MAX", "MMAP_BYTES", "Block", "Source"]

MMAP_BYTES: Final = 100_000_000
BLOCK_BYTES: Final = 1 << 19  # some 8,000 rows: below that calls cost more than bytes, above it caches overflow
GIVE_BACK_BYTES: Final = 2 << 20  # of the mapping, at once
LINE_BYTES_MAX: Final = 16 << 20  # no row is that long; without an end a line would become the whole file in memory

UTF8_BOM: Final = b"\xef\xbb\xbf"
UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")
KINDS: Final = (  # first bytes of files that people take for CSV
    (b"PK\x03\x04", "a zip archive or an Excel workbook"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite format 3", "a SQLite database"),
    (b"%PDF", "a PDF document"),
)
EXPORT_HINT: Final = "export it as CSV with the encoding UTF-8"


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines. data ends with a line feed; first_line counts from 1; end is the offset after it in the file."""

    data: bytes
    first_line: int
    end: int


class Source:
    """An open recipients file. `path` as it was given, `size` in bytes. A context manager."""

    def __init__(self, path: str) -> None:
        """Open the file. Raises EcmError: file_missing, file_unreadable, file_empty, file_binary, not_utf8."""
        self.path = path
        self._mapping: mmap.mmap | None = None
        self._passed = 0  # bytes of the mapping given back, whole pages
        self._descriptor = _open(path)
        try:
            self.size = os.fstat(self._descriptor).st_size
            self._head = os.pread(self._descriptor, BLOCK_BYTES, 0)
            self._start = _judge(path, self._head)
            line_end = self._head.find(b"\n")
            self._old_mac = line_end < 0 and b"\r" in self._head
            if self.size > MMAP_BYTES:
                self._mapping = _mapped(self._descriptor, self.size)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
        os.close(self._descriptor)

    @property
    def first_byte(self) -> bytes:
        """The first byte that is not white space, for telling NDJSON from CSV."""
        return self._head[self._start :].lstrip()[:1]

    def blocks(self) -> Iterator[Block]:
        """The file from its beginning.

        Raises EcmError: not_utf8, file_binary, io_failed, invalid_value (a line without an end).
        """
        offset, line, rest = self._start, 1, b""
        while offset < self.size:
            chunk = self._read(offset)
            offset += len(chunk)
            if self._old_mac:
                chunk = chunk.replace(b"\r", b"\n")
            cut = len(chunk) if offset >= self.size else chunk.rfind(b"\n") + 1
            if not cut:
                rest += chunk
                if len(rest) > LINE_BYTES_MAX:
                    raise EcmError(
                        "invalid_value",
                        f"a line longer than {LINE_BYTES_MAX >> 20} MB: not a recipients file",
                        file=self.path,
                        line=line,
                    )
                continue
            data = rest + chunk[:cut] if rest else chunk[:cut]
            rest = chunk[cut:]
            if not data.endswith(b"\n"):
                data += b"\n"
            lines = data.count(b"\n")
            if b"\r" in data:
                data = data.replace(b"\r\n", b"\n")
            self._check(data, line)
            yield Block(data, line, offset - len(rest))
            line += lines

    def _read(self, offset: int) -> bytes:
        size_now = os.fstat(self._descriptor).st_size
        if size_now < self.size:
            raise EcmError("io_failed", f"the file became shorter while it was read: {size_now} bytes", file=self.path)
        try:
            if self._mapping is None:
                return os.pread(self._descriptor, min(BLOCK_BYTES, self.size - offset), offset)
            if offset - self._passed > GIVE_BACK_BYTES:
                length = (offset - self._passed) // mmap.PAGESIZE * mmap.PAGESIZE
                self._mapping.madvise(mmap.MADV_DONTNEED, self._passed, length)
                self._passed += length
            return self._mapping[offset : min(offset + BLOCK_BYTES, self.size)]
        except OSError as error:
            raise EcmError("io_failed", f"reading failed: {error.strerror}", file=self.path) from error

    def _check(self, data: bytes, first_line: int) -> None:
        if b"\0" in data:
            line, column = _place(data, data.index(b"\0"), first_line)
            raise EcmError(
                "file_binary", "a NUL byte: not a text file", file=self.path, line=line, column=column, hint=EXPORT_HINT
            )
        if data.isascii():
            return
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(self.path, data, error.start, first_line) from None


def _open(path: str) -> int:
    descriptor = open_named(path)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise EcmError("file_unreadable", f"{kind}, where a file of recipients is needed", file=path)
    return descriptor


def _mapped(descriptor: int, size: int) -> mmap.mmap | None:
    """The file as memory, None where the file system has no such thing: it is read then."""
    try:
        mapping = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
    except OSError:
        return None
    mapping.madvise(mmap.MADV_SEQUENTIAL)
    return mapping


def _judge(path: str, head: bytes) -> int:
    """Offset of the first character. Raises EcmError if the first block shows that this is not UTF-8 text."""
    if not head.strip(b" \t\r\n" + UTF8_BOM):
        raise EcmError("file_empty", "the file is empty", file=path)
    for magic, name in KINDS:
        if head.startswith(magic):
            raise EcmError("file_binary", f"not a text file: {name}", file=path, hint=EXPORT_HINT)
    if head.startswith(UTF16_BOMS) or head[1:2] == b"\0" or (head[:1] == b"\0" and head[1:2] not in {b"", b"\0"}):
        raise EcmError(
            "not_utf8",
            "the file is UTF-16, it must be UTF-8",
            file=path,
            line=1,
            column=1,
            hint=f"iconv -f UTF-16 -t UTF-8 {Path(path).name} > utf8-{Path(path).name}",
        )
    return len(UTF8_BOM) if head.startswith(UTF8_BOM) else 0


def _place(data: bytes, at: int, first_line: int) -> tuple[int, int]:
    """Line and column, in characters from 1, of a byte of a block whose bytes before it are UTF-8."""
    line_start = data.rfind(b"\n", 0, at) + 1
    return first_line + data.count(b"\n", 0, at), len(data[line_start:at].decode(errors="replace")) + 1


def _not_utf8(path: str, data: bytes, at: int, first_line: int) -> EcmError:
    line, column = _place(data, at, first_line)
    byte = data[at : at + 1]
    guess = byte.decode("cp1252", errors="replace")
    meaning = "" if guess == "�" else f", in Latin-1 (Windows-1252) the letter {guess}"
    name = Path(path).name
    return EcmError(
        "not_utf8",
        f"not UTF-8: byte 0x{byte[0]:02X}{meaning}",
        file=path,
        line=line,
        column=column,
        hint=f"iconv -f WINDOWS-1252 -t UTF-8 {name} > utf8-{name}",
    )
