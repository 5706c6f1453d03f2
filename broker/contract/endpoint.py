"""A relay as those see it who connect to it: plain values out of `Relay.to_map()`, already checked.

Uses the standard library alone. A sender need not know how settings are validated, and the library that does it would
cost every sender 0.1 s at its start, for which a user waits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

__all__ = ["Endpoint"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to connect. Every field means what it means in `Relay`."""

    name: str
    host: str
    port: int
    tls: str
    username: str
    password: str = field(repr=False)
    connections: int
    messages_per_connection: int
    max_age_s: float
    window: int
    ca_file: str
    ehlo_name: str
    source_address: str
    timeouts_s: Mapping[str, float]

    @classmethod
    def from_map(cls, relay: Mapping[str, Any]) -> Self:
        """The endpoint in a map that `Relay.to_map` made."""
        return cls(**{part.name: relay[part.name] for part in fields(cls)})
