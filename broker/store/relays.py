"""What was learnt of relays, kept so that a restart does not learn it again at the relay's cost.

A relay is known by name, host and port: another server under an old name begins without a past.

Invariants
- One row a relay, rewritten whole; a relay of which nothing is known any more has none.
- Times are engine time; what is over by then means nothing, whoever reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sqlalchemy import delete, insert, select

from broker.store.schema import relays
from broker.store.store import Store

__all__ = ["Learnt", "keep", "known"]


@dataclass(frozen=True, slots=True)
class Learnt:
    """One relay's past. Times in engine seconds, 0 = none.

    mode           it was stepped down to, until `mode_until`; 0 = none
    close_count    fewest messages after which it closed a connection, believed until `close_until`; 0 = never
    tripped_until  when it is probed; trips  in a row; cause  a name of `relay_health.Cause`; reason  in its words
    """

    name: str
    host: str
    port: int
    mode: int = 0
    mode_until: float = 0.0
    close_count: int = 0
    close_until: float = 0.0
    tripped_until: float = 0.0
    trips: int = 0
    cause: str = ""
    reason: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to keep."""
        return not (self.mode or self.close_count or self.tripped_until)


def known(store: Store) -> list[Learnt]:
    """Everything kept."""
    with store.begin() as connection:
        rows = connection.execute(select(relays)).all()
    return [Learnt(**row._mapping) for row in rows]  # noqa: SLF001 - SQLAlchemy's name for a row as a map


def keep(store: Store, learnt: Iterable[Learnt]) -> None:
    """Keep what is known of these relays now in place of what was."""
    with store.begin() as connection:
        for each in learnt:
            mine = (relays.c.name == each.name, relays.c.host == each.host, relays.c.port == each.port)
            connection.execute(delete(relays).where(*mine))
            if not each.empty:
                connection.execute(insert(relays).values(asdict(each)))
