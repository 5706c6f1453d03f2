"""A list that is kept, as the audience of a campaign.

Its rows were judged when they were imported; here they are only read and packed for shards, by joining what the
store keeps packed (0.5 us a row).

Invariants
- Only the subscribed are read: whoever left the list is not in the audience at all.
- A record is what a file's would be, with the address as `email`; `_line` counts the rows read, from 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgpack  # type: ignore[import-untyped, unused-ignore]
import numpy as np

from actors.loader.packing import Entries, line_prefixes, map_header
from actors.loader.recipients import Batch, lacking
from broker.contract.errors import EcmError
from broker.store.audience import ADDRESS_FIELD, AudienceStore, Stored, show

__all__ = ["ListAudience"]


class ListAudience:
    """A list, as `recipients.Audience`. Close it."""

    def __init__(self, path: Path, name: str) -> None:
        """Raises EcmError unknown_list, io_failed."""
        show(path, name)  # before anything would be made: who asks for a list that is not there changes nothing
        self._store = AudienceStore.open(path)
        try:
            self._list = self._store.get(name)
            self._shapes = self._store.shapes(self._list.id)
        except BaseException:
            self._store.close()
            raise
        self._address_entries = Entries(msgpack.packb(ADDRESS_FIELD))
        self.file: str | None = None
        self.size = self._list.subscribed
        self.rows = 0
        self.rejected = 0
        self.wanted: frozenset[str] = frozenset()

    def close(self) -> None:
        """Give the store back."""
        self._store.close()

    @property
    def names(self) -> list[str]:
        return self._list.fields

    @property
    def address(self) -> str:
        return ADDRESS_FIELD

    def batches(self) -> Iterator[Batch]:
        """The subscribed, by key. Raises EcmError; no_recipients if there are none."""
        # A shape counts the address, which is packed apart; `_line` is one more.
        heads = {number: map_header(len(names) + 1) for number, names in self._shapes.items()}
        skips = {number: len(map_header(len(names) - 1)) for number, names in self._shapes.items()}
        lame = {number for number, names in self._shapes.items() if lacking(names, self.wanted)}
        for rows in self._store.read(self._list.id):
            yield self._batch(rows, heads, skips, lame)
            self.rows += len(rows)
        if not self.rows:
            raise EcmError("no_recipients", f"nobody is subscribed to the list: {self._list.name}", field="audience")

    def _batch(self, rows: list[Stored], heads: dict[int, bytes], skips: dict[int, int], lame: set[int]) -> Batch:
        keys, addresses, fields, shapes = zip(*rows, strict=True)
        lines = np.arange(self.rows + 1, self.rows + 1 + len(rows), dtype=np.int64)
        if len(set(skips.values())) == 1:
            skip = next(iter(skips.values()))
            bodies = [packed[skip:] for packed in fields]
        else:
            bodies = [packed[skips[shape] :] for packed, shape in zip(fields, shapes, strict=True)]
        parts = zip(
            map(heads.__getitem__, shapes),
            line_prefixes(b"", lines),
            map(self._address_entries.__getitem__, map(len, addresses)),
            addresses,
            bodies,
            strict=True,
        )
        records = list(map(b"".join, parts))
        words = np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2)
        return Batch(lines, list(addresses), words, records, [], _odd(bodies, shapes, lame), int(lines[-1]))


def _odd(bodies: list[bytes], shapes: Sequence[int], lame: set[int]) -> list[int]:
    """Rows to be composed: a byte of a number may look like a line break, which costs one look too many."""
    joined = b"".join(bodies)
    if not lame and b"\n" not in joined and b"\r" not in joined:
        return []
    return [
        index
        for index, (body, shape) in enumerate(zip(bodies, shapes, strict=True))
        if shape in lame or b"\n" in body or b"\r" in body
    ]
