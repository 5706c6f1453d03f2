"""Tries a relay out: opens a session, says QUIT, tells what was found.

    python -m actors.smtp.check < relay.json

A program of its own, so that a relay that hangs, or a resolver that does, holds nobody up. It reads one relay as
`Relay.to_map` writes it and prints one JSON document: {"ok": true, ...} or {"ok": false, "error": {...}}; the exit
status is 0 either way. It sends no message.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from typing import Any

import uvloop

from actors.smtp.session import SessionError, open_session
from actors.smtp.transaction import Stage, Transactions
from broker.contract.endpoint import Endpoint
from broker.contract.errors import EcmError

__all__ = ["check", "main"]

_GOODBYE_S = 2.0  # how long to wait for the relay to take leave: all we wanted to know is known by then


class _Leaving(asyncio.Protocol):
    """Says QUIT and waits for the end."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self.gone = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._transactions.quit())  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        if not self.gone.done():
            self.gone.set_result(None)


async def check(relay: Endpoint) -> dict[str, Any]:
    """What the relay offers, or why no session can be opened."""
    began_ns = time.monotonic_ns()
    try:
        session = await open_session(relay)
        took_ms = (time.monotonic_ns() - began_ns) / 1e6
        leaving = _Leaving(Transactions(session.mode))
        session.take_over(leaving)
    except SessionError as error:
        return {"ok": False, "error": _explained(relay, error).to_map()}
    await asyncio.wait([leaving.gone], timeout=_GOODBYE_S)
    session.transport.abort()
    return {
        "ok": True,
        "host": relay.host,
        "port": relay.port,
        "banner": session.banner,
        "tls": None if session.tls is None else str(session.tls),
        "mode": session.mode.name.lower(),
        "features": asdict(session.features),
        "logged_in": bool(relay.username),
        "open_ms": round(took_ms, 1),
    }


def _explained(relay: Endpoint, error: SessionError) -> EcmError:
    """The error a user sees: unreachable if nobody there spoke SMTP with us, refused if somebody said no."""
    unreachable = error.stage is Stage.CONNECT and error.reply is None
    name = f"relay `{relay.name}`: " if relay.name else ""
    return EcmError("relay_unreachable" if unreachable else "relay_refused", name + error.text, hint=error.hint)


def main() -> int:
    """Read a relay from stdin, print the result; returns the exit status."""
    relay = Endpoint.from_map(json.load(sys.stdin))
    result = uvloop.run(check(relay))
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
