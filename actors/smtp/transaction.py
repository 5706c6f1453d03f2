"""Mail transactions in flight on one connection: the face that senders see (RFC 5321 3.3, 2920, 3030).

    transactions = Transactions(mode)
    out = transactions.submit(1, b"news@example.com", b"anna@example.org", message)     while transactions.room()
    concluded, out = transactions.receive(data)                                         write `out`, then submit more

Three ways to carry messages, one surface (`exchange`): LOCKSTEP and PIPELINING by DATA (`data`), windows of BDAT
(`bdat`). All are sans-IO. Together `submit` and `receive` take about 2.5 us a message of 4 kB (`python bench/smtp.py`).
"""

from __future__ import annotations

from actors.smtp.bdat import WINDOW_BYTES, BdatExchange
from actors.smtp.data import DataExchange
from actors.smtp.events import Concluded, Event, Mode, Stage, event_of
from actors.smtp.exchange import Exchange

__all__ = ["WINDOW_BYTES", "Concluded", "Event", "Exchange", "Mode", "Stage", "Transactions", "event_of"]


def Transactions(mode: Mode) -> Exchange:  # noqa: N802  (to its callers it is the class of what it returns)
    """The messages of one connection, spoken in `mode`."""
    return BdatExchange() if mode is Mode.BDAT else DataExchange(mode)
