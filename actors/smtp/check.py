"""Tries a relay out: opens a session, measures its round trip, says QUIT, tells what was found.

    python -m actors.smtp.check < relay.json

A program of its own, so that a relay that hangs, or a resolver that does, holds nobody up. It reads one relay as
`Relay.to_map` writes it and prints one JSON document: {"ok": true, ...} or {"ok": false, "error": {...}}; the exit
status is 0 either way. It sends no message.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import ssl
import statistics
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final

import uvloop

from actors.smtp.session import Session, SessionError, open_session
from actors.smtp.tls import expiry_s
from actors.smtp.transaction import Mode, Stage
from broker.contract.endpoint import Endpoint
from broker.contract.errors import EcmError

__all__ = ["check", "main"]

_GOODBYE_S = 2.0  # how long to wait for the relay to take leave: all we wanted to know is known by then
_ROUND_TRIPS = 3
_ASIDE_S = 8.0  # for each thing that is only measured: a slow relay works without it


class _Leaving(asyncio.Protocol):
    """Says QUIT and waits for the end."""

    def __init__(self) -> None:
        self.gone = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(b"QUIT\r\n")  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        if not self.gone.done():
            self.gone.set_result(None)


async def check(relay: Endpoint) -> dict[str, Any]:
    """What the relay offers, or why no session can be opened.

    round_trip_ms  the median of a few NOOPs            open_ms  from the first packet until MAIL could be said
    window         most messages in flight at a time    certificate  as `_certificate` says
    """
    began_ns = time.monotonic_ns()
    try:
        session = await open_session(relay)
        open_ns = time.monotonic_ns() - began_ns
    except SessionError as error:
        return {"ok": False, "host": relay.host, "port": relay.port, "error": _explained(relay, error).to_map()}
    certificate = await _certificate(relay, session)
    round_trip_ms = await _round_trip_ms(session)
    return {
        "ok": True,
        "host": relay.host,
        "port": relay.port,
        "banner": session.banner,
        "tls": None if session.tls is None else str(session.tls),
        "certificate": certificate,
        "mode": session.mode.name.lower(),
        "window": {Mode.LOCKSTEP: 1, Mode.PIPELINING: 2, Mode.BDAT: relay.window}[session.mode],
        "features": dataclasses.asdict(session.features),
        "logged_in": session.login is not None,
        "login": session.login,
        "round_trip_ms": round_trip_ms,
        "open_ms": round(open_ns / 1e6, 1),
    }


async def _round_trip_ms(session: Session) -> float | None:
    """Milliseconds of a NOOP, and goodbye; None from a relay that does not care for NOOP and hangs up."""
    took_ns = []
    try:
        async with asyncio.timeout(_ASIDE_S):
            for _ in range(_ROUND_TRIPS):
                began_ns = time.monotonic_ns()
                await session.noop()
                took_ns.append(time.monotonic_ns() - began_ns)
        await _leave(session)
    except (SessionError, TimeoutError):
        session.close()
    return round(statistics.median(took_ns) / 1e6, 2) if took_ns else None


async def _leave(session: Session) -> None:
    leaving = _Leaving()
    session.take_over(leaving)
    await asyncio.wait([leaving.gone], timeout=_GOODBYE_S)
    session.transport.abort()


async def _certificate(relay: Endpoint, session: Session) -> dict[str, Any] | None:
    """{"verified", "valid_until", "problem"} of the relay's certificate; None without TLS.

    Where ours is opportunistic nobody looks at it; a second session does, so that `tls = "required"` is known to work
    before anybody writes it.
    """
    if session.tls is None:
        return None
    if session.tls.verified:
        return {"verified": True, "valid_until": _until(session), "problem": None}
    try:
        async with asyncio.timeout(_ASIDE_S):
            strict = await open_session(dataclasses.replace(relay, tls="required"))
        found = {"verified": False, "valid_until": _until(strict), "problem": None}
        await _leave(strict)
    except SessionError as error:
        return {"verified": False, "valid_until": None, "problem": error.text}
    except TimeoutError:
        return {"verified": False, "valid_until": None, "problem": f"no second session in {_ASIDE_S:.0f} s"}
    return found


def _until(session: Session) -> str | None:
    endpoint: ssl.SSLObject = session.transport.get_extra_info("ssl_object")
    last_s = expiry_s(endpoint)
    return None if last_s is None else datetime.fromtimestamp(last_s, UTC).isoformat().replace("+00:00", "Z")


def _explained(relay: Endpoint, error: SessionError) -> EcmError:
    """The error a user sees: unreachable if nobody there spoke SMTP with us, refused if somebody said no."""
    unreachable = error.stage is Stage.CONNECT and error.reply is None
    name = f"relay `{relay.name}`: " if relay.name else ""
    hint = error.hint or (_UNREACHABLE if unreachable else _HINTS.get(error.stage))
    return EcmError("relay_unreachable" if unreachable else "relay_refused", name + error.text, hint=hint)


_UNREACHABLE: Final = "is it running, are host and port in ecm.toml right, and does a firewall stand between?"
_HINTS: Final = {
    Stage.CONNECT: "ask its operator whether this machine's address may send through it",
    Stage.EHLO: "`ehlo_name` is what we call ourselves; some relays want a full name that resolves",
    Stage.TLS: "`openssl s_client -starttls smtp -connect HOST:PORT` shows what its TLS can do",
    Stage.AUTH: "ask its operator which ways to log in it takes, and on which port",
}


def main() -> int:
    """Read a relay from stdin, print the result; returns the exit status."""
    relay = Endpoint.from_map(json.load(sys.stdin))
    result = uvloop.run(check(relay))
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
