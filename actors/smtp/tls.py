"""TLS towards relays: what to trust, and taking up an earlier session again instead of a whole handshake.

A context belongs to one destination and to one way of trusting, so a session made without looking at the certificate
is never taken up where one must be looked at, nor at another host.

Invariants
- A session is taken up only after it stood: `remember` is called once EHLO has been answered over it.
- It is read from the connection as late as can be, when the next one begins: with TLS 1.3 the ticket comes after the
  handshake, when the server likes (RFC 8446 4.6.1).
- A server that does not know the ticket any more makes a whole handshake; nothing depends on it.
"""

from __future__ import annotations

import functools
import ssl
from dataclasses import dataclass
from typing import Any

from broker.contract.endpoint import Endpoint

__all__ = ["ClientContext", "Tls", "client_context", "expiry_s"]


@dataclass(frozen=True, slots=True)
class Tls:
    """How a session is encrypted. resumed: an earlier session was taken up; verified: the certificate was looked at."""

    version: str
    cipher: str
    verified: bool
    resumed: bool

    def __str__(self) -> str:
        return f"{self.version} {self.cipher}"

    @classmethod
    def of(cls, endpoint: ssl.SSLObject) -> Tls:
        """What was agreed on; the handshake must be done."""
        cipher = endpoint.cipher()
        assert cipher is not None
        verified = endpoint.context.verify_mode is ssl.CERT_REQUIRED
        return cls(cipher[1], cipher[0], verified, bool(endpoint.session_reused))


class ClientContext(ssl.SSLContext):
    """A client's context that offers the last session that stood.

    Neither asyncio nor uvloop takes a session for a connection, but both make their TLS object with `wrap_bio`.
    """

    _stood: ssl.SSLObject | None = None

    def remember(self, endpoint: ssl.SSLObject) -> None:
        """The session of this connection is the one to take up again."""
        self._stood = endpoint

    def forget(self) -> None:
        """Begin anew: the session offered did no good."""
        self._stood = None

    def wrap_bio(  # the signature is the library's
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """A TLS object for a connection that begins."""
        if session is None and self._stood is not None:
            session = self._stood.session
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def client_context(relay: Endpoint, changed_ns: int, *, verified: bool) -> ClientContext:
    """The context for a relay; made once, since reading the system's authorities takes about 15 ms.

    changed_ns  when `ca_file` was last changed, so that a new one is read
    verified    whether the certificate must be valid for the relay's host
    Raises OSError if `ca_file` cannot be read.
    """
    return _make(relay.host, relay.port, relay.tls, relay.ca_file, changed_ns, verified)


@functools.lru_cache(maxsize=128)
def _make(_host: str, _port: int, _tls: str, ca_file: str, _changed_ns: int, verified: bool) -> ClientContext:
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file:
        context.load_verify_locations(ca_file)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def expiry_s(endpoint: ssl.SSLObject) -> int | None:
    """Until when the certificate is valid, in seconds since the epoch; None if it was not verified."""
    certificate: dict[str, Any] = endpoint.getpeercert() or {}
    last = certificate.get("notAfter")
    return None if last is None else int(ssl.cert_time_to_seconds(last))
