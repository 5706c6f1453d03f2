"""A file of addresses to suppress: read, judged line by line, and cut into batches that are sorted by key.

Runs in a worker thread of the broker and holds one chunk of the file at a time, whatever its size. An address is the
first column of its line; quotes and a header line are optional. More lenient than the loader, on purpose: suppressing
an address that nobody could mail does no harm, turning one away that somebody can mail does.

Invariants
- An invalid line is counted, never fatal; the number of the first one is kept. Lines count from 1, as editors do.
- No single call holds Python's global lock for more than a few milliseconds: the broker's loop runs beside this.
- Reads a regular file only: a pipe or a device could block, or never end.
"""

from __future__ import annotations

import os
import re
import stat
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.contract.errors import EcmError
from broker.contract.userfile import open_named
from broker.store.suppression import BATCH_ROWS, Entry
from shm.address import KEY_SIZE, normalise

__all__ = ["CHUNK_ROWS", "AddressFile", "Batch", "Chunk", "entry_of"]

CHUNK_ROWS: Final = 524_288
"""Rows sorted together, about 30 MB while they are held. The more, the fewer pages of the index a batch writes."""

READ_BYTES: Final = 1 << 18
LINE_BYTES_MAX: Final = 1 << 16
ADDRESS_CHARACTERS_MAX: Final = 320

# One @ with something before and after it, and nothing that separates or ends what it stands in.
_ADDRESS = re.compile(r'(?:"[^"\x00-\x1f\x7f]+"|[^\s@"<>(),;:\\\[\]\x00-\x1f\x7f]+)@[^\s@"<>(),;:\\\x00-\x1f\x7f]+')
_is_address = _ADDRESS.fullmatch
_SEPARATOR = re.compile(r"[,;\t]")
_EXPORT_HINT: Final = "export it as text or CSV with the encoding UTF-8"


def entry_of(text: str) -> Entry | None:
    """The entry of one address, or None if the text is none."""
    address = normalise(text)
    if _is_address(address) is None or len(address) > ADDRESS_CHARACTERS_MAX:
        return None
    # As shm.address.key does, which would normalise once more; a test holds the two against each other.
    return Entry(sha256(address.encode("utf-8", "surrogatepass")).digest()[:KEY_SIZE], address)


class Chunk:
    """Some addresses of the file, in a few large buffers: as objects they would keep the garbage collector busy."""

    def __init__(self) -> None:
        self._keys = bytearray()
        self._text = bytearray()
        self._ends = array("L", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, entry: Entry) -> None:
        """One more."""
        self._keys += entry.key
        self._text += entry.address.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._text))

    def batches(self) -> list[Batch]:
        """The entries in the order of their keys, at most `BATCH_ROWS` at a time."""
        # numpy sorts without the global lock; list.sort() would hold it for a quarter of a second.
        heads = np.frombuffer(bytes(self._keys), dtype=">u8")[::2].astype(np.uint64)
        order = np.argsort(heads)
        return [Batch(self, order[start : start + BATCH_ROWS]) for start in range(0, len(order), BATCH_ROWS)]

    def entry(self, n: int) -> Entry:
        """The n-th that was added."""
        text = self._text[self._ends[n] : self._ends[n + 1]]
        return Entry(bytes(self._keys[n * KEY_SIZE : (n + 1) * KEY_SIZE]), text.decode("utf-8", "surrogatepass"))


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries of a chunk that go into the store together; made when they are iterated over, in the store's thread."""

    chunk: Chunk
    order: NDArray[np.int64]

    def __iter__(self) -> Iterator[Entry]:
        return map(self.chunk.entry, self.order.tolist())


@dataclass(slots=True)
class AddressFile:
    """An open file of addresses, read once from its beginning."""

    path: str
    size: int
    """Bytes."""
    file: FileIO
    offset: int = 0
    """Bytes read so far."""
    rows: int = 0
    """Lines so far that held an address or should have."""
    invalid: int = 0
    """Those of them that held none."""
    first_invalid_line: int | None = None

    @classmethod
    def open(cls, path: str) -> AddressFile:
        """Open the file. Raises EcmError: file_missing, file_unreadable, file_empty."""
        descriptor = _open(path)
        size = os.fstat(descriptor).st_size
        if size == 0:
            os.close(descriptor)
            raise EcmError("file_empty", "the file is empty", file=path)
        return cls(path, size, FileIO(descriptor, "rb"))

    def close(self) -> None:
        """Give the file back."""
        self.file.close()

    def chunks(self) -> Iterator[Chunk]:
        """The addresses, some `CHUNK_ROWS` at a time. Raises EcmError: not_utf8, file_binary, io_failed."""
        chunk = Chunk()
        number = 0
        for block in self._blocks():
            for line in self._text(block, number + 1).split("\n"):
                number += 1
                entry = entry_of(line) or entry_of(_first_column(line))
                if entry is not None:
                    self.rows += 1
                    chunk.add(entry)
                elif line.strip(" \t\r,;") and not (number == 1 and "@" not in line):
                    self._reject(number)
            if len(chunk) >= CHUNK_ROWS:
                yield chunk
                chunk = Chunk()
        if len(chunk):
            yield chunk

    def _reject(self, number: int) -> None:
        self.rows += 1
        self.invalid += 1
        if self.first_invalid_line is None:
            self.first_invalid_line = number

    def _blocks(self) -> Iterator[bytes]:
        """The file as whole lines, without the last line feed of each block."""
        rest = b""
        while block := self._read():
            if not self.offset:
                block = block.removeprefix(b"\xef\xbb\xbf")
            self.offset += len(block)
            whole, feed, rest_of_block = block.rpartition(b"\n")
            if feed:
                yield rest + whole
                rest = rest_of_block
            else:
                rest += block
            if len(rest) > LINE_BYTES_MAX:
                raise EcmError("file_binary", "not a file of addresses: a line of more than 64 kB", file=self.path)
        if rest:
            yield rest

    def _read(self) -> bytes:
        try:
            return self.file.read(READ_BYTES) or b""
        except OSError as error:
            raise EcmError("io_failed", f"reading failed: {error.strerror}", file=self.path) from error

    def _text(self, block: bytes, first_line: int) -> str:
        if b"\0" in block:
            line = first_line + block.count(b"\n", 0, block.index(b"\0"))
            raise EcmError("file_binary", "a NUL byte: not a text file", file=self.path, line=line, hint=_EXPORT_HINT)
        try:
            return block.decode()
        except UnicodeDecodeError as error:
            line = first_line + block.count(b"\n", 0, error.start)
            text = f"not UTF-8: byte 0x{block[error.start]:02X}"
            raise EcmError("not_utf8", text, file=self.path, line=line, hint=_EXPORT_HINT) from None


def _first_column(line: str) -> str:
    text = line.strip()
    if text.startswith('"'):
        return text[1:].partition('"')[0]
    return _SEPARATOR.split(text, maxsplit=1)[0]


def _open(path: str) -> int:
    descriptor = open_named(path)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise EcmError("file_unreadable", "not a regular file", file=path)
    return descriptor
