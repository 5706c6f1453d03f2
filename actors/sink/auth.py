"""AUTH PLAIN and LOGIN of the rehearsal server (RFC 4954, RFC 4616): one user, one password.

Sans-IO: lines in, replies out. LOGIN was never a standard; every client speaks it as Outlook did.

Invariants
- The password is compared in constant time and never printed.
- Whatever a client answers, the exchange ends after at most three lines.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode
from dataclasses import dataclass, field

__all__ = ["Credentials", "Exchange"]

_GO_ON = b"334 %b\r\n"
_USERNAME, _PASSWORD = b"VXNlcm5hbWU6", b"UGFzc3dvcmQ6"  # "Username:", "Password:"
_IN = b"235 2.7.0 Authentication successful\r\n"
_OUT = b"535 5.7.8 Authentication credentials invalid\r\n"
_BROKEN_OFF = b"501 5.7.0 Authentication aborted\r\n"
_NO_BASE64 = b"501 5.5.2 That is not base64\r\n"
_UNKNOWN = b"504 5.5.4 Unrecognized authentication type\r\n"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Whom AUTH lets in."""

    user: str
    password: str = field(repr=False)

    def fit(self, user: bytes, password: bytes) -> bool:
        """Whether these are the ones."""
        right = hmac.compare_digest(user, self.user.encode())
        return hmac.compare_digest(password, self.password.encode()) and right


class Exchange:
    """One AUTH command and the lines that follow it.

    over      True once it has ended
    accepted  True if it let the client in
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._mechanism = b""
        self._user: bytes | None = None
        self.over = False
        self.accepted = False

    def begin(self, line: bytes) -> bytes:
        """Answer `AUTH mechanism [initial response]`."""
        words = line.split()
        self._mechanism = words[1].upper() if len(words) > 1 else b""
        if self._mechanism not in (b"PLAIN", b"LOGIN"):
            return self._end(_UNKNOWN)
        if len(words) > 2:
            return self.answer(b"" if words[2] == b"=" else words[2])
        return _GO_ON % (b"" if self._mechanism == b"PLAIN" else _USERNAME)

    def answer(self, line: bytes) -> bytes:
        """Answer what the client says next."""
        if line == b"*":
            return self._end(_BROKEN_OFF)
        try:
            said = b64decode(line, validate=True)
        except binascii.Error:
            return self._end(_NO_BASE64)
        if self._mechanism == b"PLAIN":
            parts = said.split(b"\0")
            return self._judge(parts[1], parts[2]) if len(parts) == 3 else self._end(_OUT)
        if self._user is None:
            self._user = said
            return _GO_ON % _PASSWORD
        return self._judge(self._user, said)

    def _judge(self, user: bytes, password: bytes) -> bytes:
        self.accepted = self._credentials.fit(user, password)
        return self._end(_IN if self.accepted else _OUT)

    def _end(self, reply: bytes) -> bytes:
        self.over = True
        return reply
