"""Mail addresses as people write them in settings: `News <news@example.com>` (RFC 5322 3.4, RFC 6531).

May import the standard library only. Recipients' addresses, by the million, are the loader's; what makes two
addresses the same is `shm/address.py`.
"""

from __future__ import annotations

import re

__all__ = ["control_character", "is_address", "parse_mailbox"]

# RFC 5322 atext, and anything outside ASCII (RFC 6532); quoted local parts are refused: nobody sends from one.
_LOCAL = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+)*"
)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def control_character(text: str) -> str | None:
    """The first control character of `text`, line ends of Unicode included, or None."""
    match = _CONTROL.search(text)
    return match[0] if match else None


def is_address(text: str) -> bool:
    """Whether `text` is one address that SMTP can carry (RFC 5321 4.5.3.1: 64 and 255 octets)."""
    local, at, domain = text.rpartition("@")
    if not at or not _LOCAL.fullmatch(local) or re.search(r"\s", local) or control_character(text):
        return False
    try:
        ascii_domain = domain.encode("idna").decode("ascii") if not domain.isascii() else domain
    except UnicodeError:
        return False
    if len(local.encode()) > 64 or len(ascii_domain) > 253:
        return False
    return all(_LABEL.fullmatch(label) for label in ascii_domain.split("."))


def parse_mailbox(text: str) -> tuple[str, str] | None:
    """(display name, address) of one mailbox, the name "" if there is none; None if it is not exactly one."""
    text = text.strip()
    if not text.endswith(">"):
        return ("", text) if is_address(text) else None
    name, opening, address = text[:-1].rpartition("<")
    name, address = name.strip(), address.strip()
    if not opening or not is_address(address):
        return None
    if len(name) > 1 and name[0] == name[-1] == '"':
        return re.sub(r"\\(.)", r"\1", name[1:-1]), address
    # Two mailboxes in one line would otherwise become one with a strange name; tags may hold anything.
    return None if re.search(r"[@<>]", re.sub(r"\{\{.*?\}\}", "", name)) else (name, address)
