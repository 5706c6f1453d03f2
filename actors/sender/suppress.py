"""Which rows of a shard the suppression log names.

Pure: arrays in, row numbers out.  The log is a history: of the entries for one key the last one counts, so that an
address suppressed and let in again since the snapshot is mailed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shm.live.suppressed import ADD

__all__ = ["matching_rows"]

EVERYWHERE = 0  # scope of an entry that holds for every campaign


def matching_rows(keys: npt.NDArray[np.uint64], entries: npt.NDArray[np.void], campaign: int) -> npt.NDArray[np.int64]:
    """Row numbers, ascending, whose address is suppressed after `entries`.

    keys      u8 (rows, 2): the shard's keys
    entries   ENTRY records of the suppression log, oldest first
    campaign  entries scoped to another campaign do not count
    About 0.3 ms for 10,000 rows and 10,000 entries: once a lease and once for each batch of news.
    """
    scope = entries["scope"]
    entries = entries[(scope == EVERYWHERE) | (scope == campaign)]
    # One word of the key finds the few candidates; both words decide.
    near = np.flatnonzero(np.isin(keys[:, 0], entries["key"][:, 0]))
    if not len(near):
        return near
    named = entries[np.isin(entries["key"][:, 0], keys[near, 0])]
    last = {key.tobytes(): op for key, op in zip(named["key"], named["op"].tolist(), strict=True)}
    return near[[last.get(keys[row].tobytes()) == ADD for row in near]]
