"""A relay: the SMTP server of the operator's that mail is handed to.

May import pydantic; opens no connection and reads no file (the password comes in as a value).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import TypedDict

from broker.contract.limits import Rate, Timeout
from broker.contract.problems import Table, wrong

__all__ = ["Relay", "Timeouts", "domain_name"]


class Timeouts(TypedDict):
    """Seconds a relay may take at each stage of a session.

    Shorter than RFC 5321 4.5.3.2 (5 minutes for most) because the relay is the operator's own and near; only the
    reply to the body keeps minutes, since giving up there leaves the recipient's fate unknown (RFC 1047).

    connect    TCP and TLS           greeting   the first 220
    command    any other reply       body       from the last byte of a message to its reply
    idle       how long a connection without work is kept
    """

    connect: Timeout
    greeting: Timeout
    command: Timeout
    body: Timeout
    idle: Timeout


_TIMEOUTS = Timeouts(connect=30.0, greeting=60.0, command=120.0, body=300.0, idle=30.0)

_HOST = re.compile(r"[^\s\x00-\x1f\x7f/@]+")
_DOMAIN = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")


class Relay(Table):
    """An SMTP server that mail is handed to.

    tls                      none | opportunistic | required | implicit
    connections              most to this relay, all senders together
    messages_per_connection  0 = no limit
    max_age_s                a connection older than this takes no further message; 0 = no limit
    window                   most messages in flight on one connection
    from_domains             domains a campaign's From may have, lower case, A-labels; empty = any
    ca_file                  certificates to trust instead of the system's; absolute
    """

    name: str = ""
    host: Annotated[str, Field(description="a host name or address", examples=["smtp.example.com"])]
    port: Annotated[int, Field(ge=1, le=65535, description="a whole number from 1 to 65535")] = 25
    tls: Annotated[
        Literal["none", "opportunistic", "required", "implicit"],
        Field(description='one of "none", "opportunistic", "required", "implicit"'),
    ] = "opportunistic"
    username: Annotated[str, Field(description="text")] = ""
    password_file: Annotated[str, Field(description="a path, relative to this file")] = ""
    password: Annotated[str, Field(repr=False)] = ""
    connections: Annotated[int, Field(ge=1, le=10_000, description="a whole number from 1 to 10000")] = 20
    messages_per_connection: Annotated[int, Field(ge=0, le=10**9, description="a whole number from 0 (no limit)")] = 0
    max_age_s: Annotated[float, Field(ge=0, le=86400, description="a number of seconds from 0 (no limit) to 86400")] = (
        0.0
    )
    window: Annotated[int, Field(ge=1, le=256, description="a whole number from 1 to 256")] = 16
    rate: Annotated[Rate, Field(description="a table: { per_second = 10 }")] = Rate()
    from_domains: Annotated[
        list[Annotated[str, Field(description="a domain")]], Field(description='a list of domains: ["example.com"]')
    ] = Field(default_factory=list)
    ca_file: Annotated[str, Field(description="a path, relative to this file")] = ""
    ehlo_name: Annotated[str, Field(description="a host name")] = ""
    source_address: Annotated[str, Field(description="an address of this machine")] = ""
    timeouts_s: Annotated[Timeouts, Field(validation_alias="timeouts", description="a table: { connect = 30 }")] = (
        _TIMEOUTS
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Defaults that depend on other keys: port by TLS mode, TLS mode by port and username."""
        if not isinstance(given, dict):
            return given
        table = dict(given)
        if "port" not in table:
            table["port"] = 465 if table.get("tls") == "implicit" else 587 if table.get("username") else 25
        if "tls" not in table:
            secured = "required" if table.get("username") else "opportunistic"
            table["tls"] = "implicit" if table["port"] == 465 else secured
        for key in ("timeouts", "timeouts_s"):
            if isinstance(table.get(key), dict):
                table[key] = _TIMEOUTS | table[key]
        return table

    @field_validator("host")
    @classmethod
    def _host(cls, host: str) -> str:
        if re.fullmatch(r"[^:]+:\d+", host):
            name, _, port = host.partition(":")
            raise wrong("holds a port", hint=f'write host = "{name}" and port = {port}')
        if bracketed := re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::(\d+))?", host):
            address, port = bracketed.groups()
            if port:
                raise wrong("holds a port", hint=f'write host = "{address}" and port = {port}')
            host = address  # the brackets are for URLs and mail addresses; a resolver knows none
        if not _HOST.fullmatch(host):
            raise wrong("must be a host name or address, without spaces, `/` or `@`")
        if _a_labels(host) is None:
            raise wrong("names no valid host: a part between dots has 1 to 63 characters")
        return host

    @field_validator("from_domains")
    @classmethod
    def _domains(cls, domains: list[str]) -> list[str]:
        return [domain_name(domain) for domain in domains]

    @field_validator("ehlo_name")
    @classmethod
    def _ehlo_name(cls, name: str) -> str:
        return domain_name(name) if name else name

    @field_validator("source_address")
    @classmethod
    def _source_address(cls, text: str) -> str:
        if text:
            try:
                ipaddress.ip_address(text)
            except ValueError:
                raise wrong("must be an IP address of this machine") from None
        return text

    @field_validator("username")
    @classmethod
    def _one_line(cls, text: str) -> str:
        if any(ord(character) < 32 for character in text):
            raise wrong("holds a control character")
        return text

    def allows_from(self, address: str) -> bool:
        """Whether this relay takes mail from `address`; its domain may be written in Unicode."""
        domain = address.rpartition("@")[2].lower()
        return not self.from_domains or domain in self.from_domains or _a_labels(domain) in self.from_domains

    def to_public_map(self) -> dict[str, Any]:
        """The relay without its password: "set" or "not set" in its place."""
        return self.to_map() | {"password": "set" if self.password else "not set"}


def _a_labels(domain: str) -> str | None:
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        return None


def domain_name(text: str) -> str:
    """A domain in lower case and A-labels. Raises the error of a validator if it is none."""
    domain = text.strip().lower().rstrip(".")
    if not domain.isascii():
        domain = _a_labels(domain) or domain
    if not _DOMAIN.fullmatch(domain) or len(domain) > 253:
        hint = f'write the part after the @: "{domain.rpartition("@")[2]}"' if "@" in domain else None
        raise wrong(f'names no valid domain: `"{text}"`', hint=hint)
    return domain
