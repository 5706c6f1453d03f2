"""Why a session with a relay did not come about, in a line for the operator and with what to do about it.

Invariants
- Whatever aiosmtplib, the resolver, TLS or the socket raises becomes a SessionError that names the relay's place.
- `text` and `hint` are one line each, of printable characters, whatever the relay has said.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Final, Literal, cast

import aiosmtplib

from actors.smtp.dial import SourceError
from actors.smtp.events import Stage
from actors.smtp.reply import Reply, legible, read_text
from broker.contract.endpoint import Endpoint
from broker.contract.place import place

__all__ = ["SessionError", "explained", "reason_of", "reply_of"]

Blames = Literal["relay", "sender"]

_SAID_MAX = 100  # characters of what is no reply that are worth showing
_MALFORMED = "Malformed SMTP response line: "  # aiosmtplib's words before those of the server
_DOING: Final = {
    Stage.CONNECT: "connection",
    Stage.EHLO: "EHLO",
    Stage.TLS: "TLS",
    Stage.AUTH: "AUTH",
}
_NAMES: Final = "check `host` of this relay, and that this machine can look names up (DNS)"
_ANOTHER_SERVICE: Final = "another service answers there: check `host` and `port` of this relay"
_BEGINS_IN_THE_CLEAR: Final = 'tls = "implicit" is for port 465; ports 25 and 587 begin in the clear: tls = "required"'
_BEGINS_WITH_TLS: Final = (
    'is it running? a port that wants TLS from the first byte (465) does not greet in the clear: tls = "implicit"'
)


class SessionError(Exception):
    """A session that did not come about, or broke at hand-over.

    stage   CONNECT, EHLO, TLS or AUTH
    reply   what the relay said, if it said something
    text    one line for the operator
    blames  "relay", or "sender" where it is our credentials or settings that do not fit
    hint    what to do about it, or None
    """

    def __init__(
        self, stage: Stage, reply: Reply | None, text: str, *, blames: Blames = "relay", hint: str | None = None
    ) -> None:
        super().__init__(text)
        self.stage = stage
        self.reply = reply
        self.text = text
        self.blames: Blames = blames
        self.hint = hint


@contextlib.contextmanager
def explained(relay: Endpoint, stage: Stage, smtp: aiosmtplib.SMTP) -> Iterator[None]:
    """Turn what aiosmtplib, the resolver, TLS and the socket raise at a stage into SessionError."""
    try:
        yield
    except aiosmtplib.SMTPResponseException as error:
        raise _refused(relay, stage, error) from error
    except (aiosmtplib.SMTPException, OSError) as error:
        told = isinstance(error.__cause__, OSError) and not isinstance(error, TimeoutError)
        cause = cast("OSError", error.__cause__) if told else error
        connected = smtp.transport is not None or stage is not Stage.CONNECT
        raise _broken(relay, stage, cause, connected=connected) from error


def _refused(relay: Endpoint, stage: Stage, error: aiosmtplib.SMTPResponseException) -> SessionError:
    at = place(relay.host, relay.port)
    if not 200 <= error.code <= 599:
        said = legible(error.message).removeprefix(_MALFORMED)
        said = "".join(c if c.isprintable() else " " for c in said).strip()[:_SAID_MAX]
        hint = _ANOTHER_SERVICE if stage is Stage.CONNECT else None
        return SessionError(stage, None, f"{at} does not speak SMTP: {said}", hint=hint)
    reply = reply_of(error.code, error.message)
    if stage is Stage.AUTH and error.code >= 500:
        text = f"{at} refused the login of {relay.username}: {reply}"
        hint = "check username and password_file of this relay"
        return SessionError(stage, reply, text, blames="sender", hint=hint)
    return SessionError(stage, reply, f"{at} refused the {_DOING[stage]}: {reply}")


def _broken(relay: Endpoint, stage: Stage, error: Exception, *, connected: bool) -> SessionError:
    at = place(relay.host, relay.port)
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"the certificate of {at} is not valid: {error.verify_message or reason_of(error)}"
        hint = "name its authority with `ca_file`, or the host as the certificate does"
        return SessionError(Stage.TLS, None, text, blames="sender", hint=hint)
    if isinstance(error, ssl.SSLError):
        advice = _BEGINS_IN_THE_CLEAR if relay.tls == "implicit" else None
        return SessionError(Stage.TLS, None, f"TLS with {at} failed: {reason_of(error)}", hint=advice)
    if isinstance(error, SourceError):
        text = f"cannot connect from source_address {relay.source_address}: {reason_of(error)}"
        hint = "name an address of this machine, of a family that the relay has"
        return SessionError(stage, None, text, blames="sender", hint=hint)
    if isinstance(error, socket.gaierror):
        text = f"cannot resolve {relay.host}: {error.strerror}"
        return SessionError(stage, None, text, blames="sender", hint=_NAMES)
    connected = connected or isinstance(error, (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPConnectTimeoutError))
    ungreeted = stage is Stage.CONNECT and connected
    doing = "greeting" if ungreeted else _DOING[stage]
    # Who is there and does not greet may be waiting for us to begin TLS.
    advice = _BEGINS_WITH_TLS if ungreeted and relay.tls != "implicit" else None
    if isinstance(error, TimeoutError):
        return SessionError(stage, None, f"no answer from {at} in time ({doing})", hint=advice)
    if connected:
        return SessionError(stage, None, f"{at} closed the connection ({doing})", hint=advice)
    return SessionError(stage, None, f"cannot connect to {at}: {reason_of(error)}")


def reply_of(code: int, message: str) -> Reply:
    """The reply in what aiosmtplib has read."""
    return read_text("\n".join(f"{code} {line}" for line in legible(message).split("\n")))


def reason_of(error: BaseException) -> str:
    """The reason alone, without numbers and addresses that the line around it names already."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else str(error)
