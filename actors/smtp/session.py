"""Opens an SMTP session to a relay and hands its transport over: `dial`, EHLO, `tls`, AUTH.

aiosmtplib speaks until the session stands; the transactions are ours (`transaction`), because it waits for each reply
and drops what it did not ask for. Once a session, never per message.

It may not decide anything about recipients: none is in flight yet. A session that cannot be opened raises SessionError,
which blames the relay, or us ("sender": credentials, certificates we do not trust), never a recipient.

Invariants
- Every stage has a deadline (`deadline_s`), so a silent relay cannot hold a session for ever.
- Credentials go over verified TLS, or over a line the operator declared plain with tls = "none"; an attacker who
  strips or breaks STARTTLS gets an error from us and no password.
- Bytes received before TLS are not believed after it (RFC 3207 4.2): aiosmtplib drops them, and says EHLO anew.
- At hand-over nothing is owed in either direction; a relay that has already said more is refused.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import aiosmtplib

from actors.smtp.dial import dial
from actors.smtp.failure import SessionError, explained, reason_of, reply_of
from actors.smtp.reply import legible
from actors.smtp.tls import ClientContext, Tls, client_context
from actors.smtp.transaction import Mode, Stage
from broker.contract.endpoint import Endpoint
from broker.contract.place import place

__all__ = ["Features", "Session", "SessionError", "deadline_s", "open_session"]

_TIMEOUT_OF: dict[Stage, Literal["connect", "greeting", "command", "body", "idle"]] = {
    Stage.IDLE: "idle",
    Stage.CONNECT: "connect",
    Stage.EHLO: "command",
    Stage.TLS: "connect",
    Stage.AUTH: "command",
    Stage.MAIL: "command",
    Stage.RCPT: "command",
    Stage.DATA: "command",
    Stage.BODY: "body",
    Stage.RSET: "command",
    Stage.QUIT: "command",
}

_SIZE_DIGITS = 20  # RFC 1870 3
_WRONG_MECHANISM = (504, 534)  # RFC 4954 6: unknown, too weak; another one may do


def deadline_s(relay: Endpoint, stage: Stage) -> float:
    """Seconds a relay may take for the reply awaited at `stage`."""
    return relay.timeouts_s[_TIMEOUT_OF[stage]]


@dataclass(frozen=True, slots=True)
class Features:
    """What EHLO announced. size: bytes a message may have; 0 = no limit named, None = SIZE not offered (RFC 1870)."""

    pipelining: bool = False
    chunking: bool = False
    eightbitmime: bool = False
    smtputf8: bool = False
    enhanced: bool = False
    starttls: bool = False
    size: int | None = None
    auth: tuple[str, ...] = ()

    def mode(self, ceiling: Mode) -> Mode:
        """The best mode these features allow, not above `ceiling`."""
        if not self.pipelining:
            return Mode.LOCKSTEP
        return min(Mode.BDAT if self.chunking else Mode.PIPELINING, ceiling)

    def params(self, body: bytes, *, smtputf8: bool = False) -> bytes:
        """MAIL parameters for a message; only what was announced is used. Hot: about 0.5 us."""
        words = []
        if self.size is not None:
            words.append(b"SIZE=%d" % len(body))
        if self.eightbitmime and not body.isascii():
            words.append(b"BODY=8BITMIME")
        if smtputf8 and self.smtputf8:
            words.append(b"SMTPUTF8")
        return b" ".join(words)


def _features(extensions: dict[str, str], auth: list[str]) -> Features:
    size = extensions.get("size")
    named = size is not None and size.isascii() and size.isdecimal() and len(size) <= _SIZE_DIGITS
    return Features(
        pipelining="pipelining" in extensions,
        chunking="chunking" in extensions,
        eightbitmime="8bitmime" in extensions,
        smtputf8="smtputf8" in extensions,
        enhanced="enhancedstatuscodes" in extensions,
        starttls="starttls" in extensions,
        size=None if size is None else int(size) if named else 0,
        auth=tuple(legible(method) for method in auth),
    )


class Session:
    """An open session, nothing in flight.

    transport  of asyncio or uvloop, TLS included
    mode       for Transactions
    features   of the EHLO that counts: after TLS
    tls        how it is encrypted, or None
    login      the mechanism by which we are logged in, or None
    banner     the relay's greeting
    """

    def __init__(self, smtp: aiosmtplib.SMTP, mode: Mode, features: Features, login: str | None, banner: str) -> None:
        self.transport = cast("asyncio.Transport", smtp.transport)
        self.mode = mode
        self.features = features
        self.tls = _tls(smtp)
        self.login = login
        self.banner = banner
        self._smtp = smtp

    async def noop(self) -> None:
        """One round trip: whatever the relay answers. Raises SessionError if it does not."""
        try:
            await self._smtp.noop()
        except aiosmtplib.SMTPResponseException:
            pass  # a refusal came all the way, too
        except (aiosmtplib.SMTPException, OSError) as error:
            raise SessionError(Stage.EHLO, None, "the relay did not answer NOOP") from error

    def take_over(self, protocol: asyncio.Protocol) -> None:
        """Make `protocol` the transport's own and tell it so (`connection_made`).

        Call it as soon as `open_session` has returned, without an await between: what arrives in between is dropped.
        Raises SessionError if the relay has closed or has spoken out of turn; the transport is closed then.
        """
        speaker = self._smtp.protocol
        if speaker is None or not speaker.is_connected:
            raise SessionError(Stage.EHLO, None, "the relay closed the connection before the first message")
        early = bytes(speaker._buffer)  # noqa: SLF001  (no public way to see what it read ahead)
        if early:
            self.transport.abort()
            raise SessionError(Stage.EHLO, None, f"the relay spoke out of turn: {early[:100]!r}")
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)

    def close(self) -> None:
        """Close a session that nobody took over."""
        self._smtp.close()


async def open_session(relay: Endpoint, *, ceiling: Mode = Mode.BDAT) -> Session:
    """A session ready for MAIL. Raises SessionError.

    ceiling  the best mode to use, whatever the relay announces: lower after it has misbehaved
    """
    try:
        return await _Opener(relay).open(ceiling)
    except SessionError as error:
        if error.stage is not Stage.TLS or relay.tls != "opportunistic" or relay.username:
            raise
    # Opportunistic TLS that fails is no TLS (RFC 7435): the alternative would be no mail.
    return await _Opener(relay, starttls=False).open(ceiling)


class _Opener:
    """The steps to one session."""

    def __init__(self, relay: Endpoint, *, starttls: bool = True) -> None:
        self._relay = relay
        self._place = place(relay.host, relay.port)
        self._starttls = starttls and relay.tls in ("opportunistic", "required")
        self._command_s = deadline_s(relay, Stage.EHLO)

    async def open(self, ceiling: Mode) -> Session:
        """Connect, greet, secure, log in; a session whose mode is at most `ceiling`. Raises SessionError."""
        context = None if self._relay.tls == "none" else await self._context()
        smtp = aiosmtplib.SMTP(
            hostname=self._relay.host,
            local_hostname="localhost",  # never said: `_hello` gives the name
            timeout=self._command_s,
            use_tls=self._relay.tls == "implicit",
            start_tls=False,
            tls_context=context,
        )
        try:
            with explained(self._relay, Stage.EHLO, smtp):  # a relay may also vanish between two steps
                session = await self._steps(smtp, ceiling)
        except BaseException as error:  # cancelled ones too: the socket must not outlive the attempt
            smtp.close()
            if context is not None and isinstance(error, SessionError) and error.stage is Stage.TLS:
                context.forget()
            if isinstance(error, SessionError) or not isinstance(error, Exception):
                raise
            # Whatever a relay says, and whatever the libraries make of it: it is one relay that fails, not the sender.
            text = f"cannot open a session with {self._place}: {type(error).__name__}: {legible(str(error))}"
            raise SessionError(Stage.EHLO, None, text) from error
        if context is not None and session.tls is not None:
            context.remember(smtp.get_transport_info("ssl_object"))
        return session

    async def _steps(self, smtp: aiosmtplib.SMTP, ceiling: Mode) -> Session:
        banner = await self._connect(smtp)
        name = self._relay.ehlo_name or await _own_name(smtp)
        await self._hello(smtp, name)
        if self._starttls and await self._start_tls(smtp):
            await self._hello(smtp, name)
        login = await self._login(smtp) if self._relay.username else None
        features = _features(smtp.esmtp_extensions, smtp.server_auth_methods)
        return Session(smtp, features.mode(ceiling), features, login, banner)

    async def _context(self) -> ClientContext:
        verified = self._relay.tls != "opportunistic" or bool(self._relay.username)
        ca_file = self._relay.ca_file
        try:
            changed_ns = Path(ca_file).stat().st_mtime_ns if ca_file else 0  # noqa: ASYNC240  (one stat, at opening)
            return await asyncio.to_thread(client_context, self._relay, changed_ns, verified=verified)
        except OSError as error:
            text = f"cannot use the certificates of {ca_file}: {reason_of(error)}"
            raise SessionError(Stage.TLS, None, text, blames="sender") from error

    async def _connect(self, smtp: aiosmtplib.SMTP) -> str:
        loop = asyncio.get_running_loop()
        connect_s, greeting_s = deadline_s(self._relay, Stage.CONNECT), self._relay.timeouts_s["greeting"]
        # aiosmtplib gives so much to its handshake, and as much again to the greeting; the watch cuts the former short.
        within_s = max(connect_s, greeting_s) if self._relay.tls == "implicit" else greeting_s
        with explained(self._relay, Stage.CONNECT, smtp):
            async with asyncio.timeout(connect_s + greeting_s) as limit:

                def give_up_connecting() -> None:
                    if smtp.transport is None:
                        limit.reschedule(loop.time())

                watch = loop.call_later(connect_s, give_up_connecting)
                try:
                    endpoint = await dial(self._relay.host, self._relay.port, self._relay.source_address)
                    try:
                        greeting = await smtp.connect(sock=endpoint, timeout=within_s)
                    finally:
                        if smtp.transport is None:
                            endpoint.close()
                finally:
                    watch.cancel()
        return reply_of(greeting.code, greeting.message).text

    async def _hello(self, smtp: aiosmtplib.SMTP, name: str) -> None:
        with explained(self._relay, Stage.EHLO, smtp):
            try:
                await smtp.ehlo(hostname=name)
            except aiosmtplib.SMTPHeloError as refused:
                if not 500 <= refused.code < 600 or not smtp.is_connected:
                    raise
                await smtp.helo(hostname=name)  # RFC 5321 3.2: a server without extensions

    async def _start_tls(self, smtp: aiosmtplib.SMTP) -> bool:
        """Encrypt; False if the relay offers no TLS and may do without."""
        if not smtp.supports_extension("starttls"):
            if self._relay.tls == "required":
                hint = 'set tls = "none" for this relay only if the line to it is safe'
                raise SessionError(Stage.TLS, None, f"{self._place} offers no STARTTLS", blames="sender", hint=hint)
            return False
        with explained(self._relay, Stage.TLS, smtp):
            await smtp.starttls(timeout=deadline_s(self._relay, Stage.TLS))
        return True

    async def _login(self, smtp: aiosmtplib.SMTP) -> str:
        """Log in; the mechanism that did it."""
        encrypted = _tls(smtp) is not None
        if not encrypted and self._relay.tls != "none":
            text = f"{self._place} offers no TLS: the password is not sent over a plain line"
            hint = 'set tls = "none" for this relay only if the line to it is safe'
            raise SessionError(Stage.AUTH, None, text, blames="sender", hint=hint)
        # Over TLS the password itself is safe; on a plain line a digest of it is better than itself.
        known = ("plain", "login", "cram-md5") if encrypted else ("cram-md5", "plain", "login")
        methods = [method for method in known if method in smtp.server_auth_methods]
        if not methods:
            offered = legible(", ".join(smtp.server_auth_methods)) or "none"
            text = f"{self._place} offers no way to log in that we know: {offered}"
            raise SessionError(Stage.AUTH, None, text, blames="sender")
        says = {"plain": smtp.auth_plain, "login": smtp.auth_login, "cram-md5": smtp.auth_crammd5}
        with explained(self._relay, Stage.AUTH, smtp):
            for method in methods:
                try:
                    await says[method](self._relay.username, self._relay.password)
                except aiosmtplib.SMTPAuthenticationError as refused:
                    if refused.code not in _WRONG_MECHANISM or method is methods[-1]:
                        raise
                else:
                    return method
        raise AssertionError("the last mechanism either logs in or is refused")


@functools.cache
def _host_name() -> str:
    return socket.getfqdn()


async def _own_name(smtp: aiosmtplib.SMTP) -> str:
    """What to call ourselves: the host's full name, else its address (RFC 5321 4.1.3)."""
    name = await asyncio.to_thread(_host_name)
    if "." in name.strip(".") and name.isascii():
        return name
    address: str = smtp.get_transport_info("sockname")[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _tls(smtp: aiosmtplib.SMTP) -> Tls | None:
    endpoint: ssl.SSLObject | None = smtp.get_transport_info("ssl_object")
    return None if endpoint is None else Tls.of(endpoint)
