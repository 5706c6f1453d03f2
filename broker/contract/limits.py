"""Limits: the kinds of numbers settings and campaigns are made of, and the [rate] table both have.

May import pydantic; holds values only. What the limits mean is kept by the broker's rates, not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field

from broker.contract.problems import Table

__all__ = ["Count", "Milliseconds", "OptionalSeconds", "Rate", "Seconds", "Share", "Timeout", "Weight"]

Count = Annotated[int, Field(ge=0, le=10**12, description="a whole number from 0 (no limit)")]
Milliseconds = Annotated[float, Field(ge=0, le=3_600_000, description="a number of milliseconds from 0 to 3600000")]
Seconds = Annotated[int, Field(ge=1, le=30 * 86400, description="a whole number of seconds from 1 to 2592000")]
OptionalSeconds = Annotated[
    int | None, Field(ge=1, le=30 * 86400, description="a whole number of seconds from 1 to 2592000")
]
Timeout = Annotated[float, Field(gt=0, le=3600, description="a number of seconds above 0, at most 3600")]
Share = Annotated[float, Field(ge=0, le=1, description="a share from 0 to 1")]
Weight = Annotated[int, Field(ge=1, le=1000, description="a whole number from 1 to 1000")]


class Rate(Table):
    """Limits of a campaign or a relay; 0 = no such limit.

    per_second, burst   one bucket: refill in messages a second, depth in messages (None or 0: the least depth
                        that carries the rate)
    per_minute, per_hour, per_day   no interval of that length, wherever it begins, holds more
    wait_ms             least gap between two attempts
    cooldown_ms         least gap after the attempt that empties the bucket
    """

    per_second: Annotated[float, Field(ge=0, le=1e6, description="a number from 0 (no limit) to 1000000")] = 0.0
    per_minute: Count = 0
    per_hour: Count = 0
    per_day: Count = 0
    burst: Annotated[int | None, Field(ge=0, le=10**9, description="a whole number from 0")] = None
    wait_ms: Milliseconds = 0.0
    cooldown_ms: Milliseconds = 0.0

    @classmethod
    def campaign_default(cls) -> Self:
        """What a campaign without [rate] gets: the source document's figures."""
        return cls(per_second=100.0, per_minute=5000, burst=200, wait_ms=1.0, cooldown_ms=1.0)

    @classmethod
    def completed(cls, table: Mapping[str, Any] | None) -> dict[str, Any]:
        """A campaign's [rate] with its defaults, unchecked.

        The defaults apply as a set: a table that says per_second or per_minute itself gets none of them, since a
        default minute limit would silently cap the second limit that was asked for.
        """
        given = dict(table or {})
        if "per_second" in given or "per_minute" in given:
            return given
        return cls.campaign_default().to_map() | given

    @classmethod
    def from_table(cls, table: Mapping[str, Any] | None) -> Self:
        """The limits of a campaign whose [rate] is `table`. Raises pydantic's ValidationError."""
        return cls.model_validate(cls.completed(table))

    @property
    def limited(self) -> bool:
        """Whether any limit is set at all."""
        return any((self.per_second, self.per_minute, self.per_hour, self.per_day, self.wait_ms, self.cooldown_ms))
