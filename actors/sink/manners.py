"""How the rehearsal server behaves towards everybody: what it announces, what it takes, how late it answers.

Values only; one object for all sessions.

Invariants
- What is not announced is not taken, but for pipelining, which cannot be told from a fast client.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field

from actors.sink.auth import Credentials
from actors.sink.held import Delays

__all__ = ["SIZE_MAX", "Manners"]

SIZE_MAX = 52_428_800  # bytes a message, announced as SIZE (RFC 1870) if nothing else is asked for


@dataclass(frozen=True, slots=True)
class Manners:
    """One server's.

    name         host name in the greeting
    size_max     bytes a message, announced as SIZE
    pipelining, chunking, eight_bit, smtputf8   announce and take these (RFC 2920, 3030, 6152, 6531)
    delays       why answers are late
    close_after  closes without a word after so many messages on a connection; 0 = never
    sessions_max connections beyond these get a 421; 0 = no limit
    starttls     offer STARTTLS with this (RFC 3207)
    credentials  whom AUTH lets in; nobody else may send then
    """

    name: str = "sink.example.com"
    size_max: int = SIZE_MAX
    pipelining: bool = True
    chunking: bool = True
    eight_bit: bool = True
    smtputf8: bool = True
    delays: Delays = field(default_factory=Delays)
    close_after: int = 0
    sessions_max: int = 0
    starttls: ssl.SSLContext | None = None
    credentials: Credentials | None = None

    def hello(self, *, encrypted: bool) -> bytes:
        """The answer to EHLO. Passwords are asked for on an encrypted connection, if there can be one."""
        keywords = [b"SIZE %d" % self.size_max, b"ENHANCEDSTATUSCODES"]
        keywords += [b"PIPELINING"] * self.pipelining + [b"CHUNKING"] * self.chunking
        keywords += [b"8BITMIME"] * self.eight_bit + [b"SMTPUTF8"] * self.smtputf8
        if self.starttls is not None and not encrypted:
            keywords.append(b"STARTTLS")
        elif self.credentials is not None:
            keywords.append(b"AUTH PLAIN LOGIN")
        lines = [self.name.encode(), *keywords]
        return b"".join(b"250-%b\r\n" % line for line in lines[:-1]) + b"250 %b\r\n" % lines[-1]

    def group(self) -> re.Pattern[bytes]:
        """What a pipelining client sends for a message, as one match: (RSET, sender, recipient, bytes of BDAT or None).

        Parameters that would have to be looked at do not match; sizes of fewer digits than the limit are below it.
        """
        digits = len(str(self.size_max)) - 1
        parameters = [b"SIZE=\\d{1,%d}" % digits] if digits else []
        parameters += [b"BODY=(?:7BIT|8BITMIME)"] * self.eight_bit + [b"SMTPUTF8"] * self.smtputf8
        body = rb"(?:DATA|BDAT (\d{1,9}) LAST)\r\n" if self.chunking else rb"DATA((?!))?\r\n"
        mail = rb"(RSET\r\n)?MAIL FROM:<([^>\r\n]*+)>(?: (?:%b))*+\r\n" % b"|".join(parameters)
        return re.compile(mail + rb"RCPT TO:<([^>\r\n]++)>\r\n" + body)

    def refusal(self, parameters: bytes) -> bytes | None:
        """The answer to parameters of MAIL that are not taken, CRLF included; None = they are."""
        for parameter in parameters.upper().split():
            keyword, _, value = parameter.partition(b"=")
            if keyword == b"SIZE" and value.isdigit():
                if int(value[:20]) > self.size_max:
                    return b"552 5.3.4 Message size exceeds fixed limit\r\n"
                continue
            taken = (
                (keyword == b"BODY" and value in (b"7BIT", b"8BITMIME") and self.eight_bit)
                or (parameter == b"SMTPUTF8" and self.smtputf8)
                or (keyword == b"AUTH" and self.credentials is not None)
            )
            if not taken:
                return b"555 5.5.4 Unsupported option: %b\r\n" % parameter[:64]
        return None
