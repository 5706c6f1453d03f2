"""The relays as the broker sees them: which a campaign may use, how many connections a sender may open, how they are.

Relays are declared in ecm.toml alone. A campaign names one relay or a pool; `of` says which relays that is. The
connections a relay allows are shared out among the senders, so that together they never exceed it.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from broker.contract.campaign import CampaignSpec
from broker.contract.errors import EcmError
from broker.contract.log import log
from broker.contract.settings import Relay, Settings
from shm.live.faults import FaultTable
from shm.live.relays import RelayState, RelayTable

__all__ = ["RelayView", "Relays", "allowances"]

CHECK_S_MAX = 20.0  # connect, greeting, EHLO, TLS and AUTH of a slow relay
PROBE_S = 20.0  # longer than the longest pause a sender makes between two tries
DOWN_S = 2.0  # no connection and only failures for this long: campaigns on it wait


def allowances(connections: int, senders: int) -> list[int]:
    """Shares of a relay's `connections` for each sender, the first ones one more; their sum is `connections`.

    With fewer connections than senders the last senders have none, and get no lease that needs this relay.
    """
    each, more = divmod(connections, senders)
    return [each + (index < more) for index in range(senders)]


@dataclass(slots=True)
class RelayView:
    """What all senders together say of one relay."""

    name: str
    connections: int
    connections_limit: int
    mode: str | None
    state: str
    reason: str | None


class Relays:
    """All relays of the settings. The index of a relay in the arena's table is its place in the settings."""

    def __init__(self, settings: Settings, table: RelayTable, faults: FaultTable, sender_rows: list[int]) -> None:
        self._settings = settings
        self._table = table
        self._faults = faults
        self._rows = sender_rows
        self.names = list(settings.relays)
        self._alone_since: dict[int, float] = {}  # relay -> monotonic time since when it only fails
        self._failures: dict[int, int] = {}
        self._failed_at: dict[int, float] = {}
        self._down: dict[int, str] = {}
        self._publish()

    def _publish(self) -> None:
        self._open_to: dict[int, frozenset[int]] = {}
        for index, name in enumerate(self.names):
            shares = allowances(self._settings.relays[name].connections, len(self._rows))
            for row, share in zip(self._rows, shares, strict=True):
                self._table.allow(row, index, share, RelayState.UP, 0)
                if share:
                    self._open_to[row] = self.open_to(row) | {index}

    def open_to(self, row: int) -> frozenset[int]:
        """Relays that the sender in `row` may open connections to; it can do nothing with a lease of any other."""
        return self._open_to.get(row, frozenset())

    def index(self, name: str) -> int:
        """Place of a relay in the arena's table."""
        return self.names.index(name)

    def relay(self, name: str) -> Relay:
        """Settings of one relay. Raises EcmError unknown_relay."""
        if name not in self._settings.relays:
            self._settings.weights(name)
            raise EcmError("unknown_relay", f"`{name}` is a pool, not a relay", field="relay")
        return self._settings.relays[name]

    def of(self, spec: CampaignSpec) -> list[tuple[str, int]]:
        """(relay, weight) of a campaign's relay or pool. Raises EcmError unknown_relay, from_not_allowed."""
        relays = list(self._settings.weights(spec.relay).items())
        for name, _ in relays:
            relay = self._settings.relays[name]
            if not relay.allows_from(spec.from_address):
                raise EcmError(
                    "from_not_allowed",
                    f"relay `{name}` sends for {', '.join(relay.from_domains)} only, not for: {spec.from_address}",
                    field="from",
                    hint="choose another relay, or add the domain to its `from_domains`",
                )
        return relays

    async def reachable(self, relays: list[tuple[str, int]]) -> None:
        """Speak with the relays of a campaign before its launch. Raises what the last one said if none answers."""
        results = await asyncio.gather(*(self.check(name) for name, _ in relays))
        failures = [result["error"] for result in results if not result["ok"]]
        if len(failures) == len(relays):
            raise EcmError.from_map(failures[-1])

    async def check(self, name: str) -> dict[str, Any]:
        """What a relay offers: connect, EHLO, STARTTLS, AUTH, in a process of its own (it may hang)."""
        try:
            return {"name": name, **await self._check(self.relay(name))}
        except TimeoutError:
            error = self._silent(name)
        except (OSError, ValueError) as fault:  # no process to be had, or one that died without a word
            error = EcmError("internal", f"relay `{name}` could not be checked: {fault}")
        return {"ok": False, "name": name, "error": error.to_map()}

    async def _check(self, relay: Relay) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "actors.smtp.check",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            settings = json.dumps(relay.to_map()).encode()
            out, _ = await asyncio.wait_for(process.communicate(settings), CHECK_S_MAX)
            result: dict[str, Any] = json.loads(out)
            return result
        finally:
            if process.returncode is None:  # too late, or nobody waits for it any more
                process.kill()

    def _silent(self, name: str) -> EcmError:
        relay = self.relay(name)
        return EcmError("relay_unreachable", f"relay `{name}` ({relay.host}:{relay.port}) gave no answer in 20 s")

    def views(self) -> list[RelayView]:
        """Each relay over all senders."""
        return [self._view(index, name) for index, name in enumerate(self.names)]

    def _view(self, index: int, name: str) -> RelayView:
        rows = [self._table.use(row, index) for row in self._rows]
        modes = [row.mode for row in rows if row.mode]
        down = self._down.get(index)
        mode = {0: None, 1: "lockstep", 2: "pipelining", 3: "bdat"}[max(modes, default=0)]
        return RelayView(
            name,
            sum(row.connections for row in rows),
            self._settings.relays[name].connections,
            mode,
            "up" if down is None else "tripped",
            down,
        )

    def watch(self) -> None:
        """Look who fails: a relay without a connection whose failures grow for `DOWN_S` is down, until one opens.

        One that nobody has tried for `PROBE_S` is no longer called down, so that the next lease tries it: while
        another relay of its pool works, nobody else would.
        """
        now = time.monotonic()
        for index, name in enumerate(self.names):
            rows = [self._table.use(row, index) for row in self._rows]
            failures = sum(row.failures for row in rows)
            if sum(row.connections for row in rows):
                self._alone_since.pop(index, None)
                if self._down.pop(index, None) is not None:
                    log.info("relay recovered", relay=name)
            elif failures > self._failures.get(index, 0):
                since = self._alone_since.setdefault(index, now)
                self._failed_at[index] = now
                if now - since >= DOWN_S and index not in self._down:
                    self._down[index] = self._last_fault(name)
                    log.error("relay down", relay=name, reason=self._down[index])
            elif index in self._down and now - self._failed_at[index] > PROBE_S:
                del self._down[index], self._alone_since[index]
            self._failures[index] = failures

    def _last_fault(self, name: str) -> str:
        relay = self._settings.relays[name]
        texts = [f for f in self._faults.read() if name in f.text]
        if texts:
            return max(texts, key=lambda f: f.last_ns).text
        return f"relay `{name}` ({relay.host}:{relay.port}) cannot be reached"

    def down(self, indexes: list[int]) -> str | None:
        """Why none of these relays works; None if one does."""
        reasons = [self._down.get(index) for index in indexes]
        return None if not reasons or None in reasons else reasons[-1]
