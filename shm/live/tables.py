"""The list of all tables of the arena, in the order in which they lie there.

May not: hold layout itself; each table is declared, drawn and asserted in the module that gives it its meaning.
"""

from __future__ import annotations

from shm.live import clock, counters, faults, grants, heartbeat, histogram, leases, relays, suppressed
from shm.live.layout import LANE, Table

__all__ = ["TABLES"]

TABLES: tuple[Table, ...] = (
    *clock.TABLES,
    *heartbeat.TABLES,
    *leases.TABLES,
    *counters.TABLES,
    *grants.TABLES,
    *relays.TABLES,
    *histogram.TABLES,
    *suppressed.TABLES,
    *faults.TABLES,
)

assert len({table.name for table in TABLES}) == len(TABLES), "two tables of one name"
assert all(table.dtype.itemsize % LANE == 0 for table in TABLES), "a record must fill whole lanes"
