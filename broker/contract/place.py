"""How a server is written for people: `host:port`, an address of IPv6 in brackets (RFC 3986 3.2.2).

May import nothing: commands of `ctl` load it, and so do senders.
"""

from __future__ import annotations

__all__ = ["place"]


def place(host: str, port: int) -> str:
    """`mail.example.com:587`, `[2001:db8::1]:25`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
