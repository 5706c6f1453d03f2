"""`ctl reload`: the settings file read again while the engine runs.

Invariants
- The whole file is checked, and every file that a new limit needs is opened, before anything changes: a reload happens
  as a whole or not at all.
- What is taken away is taken away first: allowances fall, leases are called back, and only then are senders told.
- A message to a sender may be lost: it is told again until it says that it has taken the settings over, and until
  then it is neither lent a shard for a relay that it does not know nor granted a message to one.
- What needs a restart stays as it is, and is named in the answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from broker.contract.errors import EcmError, plainly
from broker.contract.log import log
from broker.contract.settings import Settings, load_settings
from broker.leases import RETURN, RUN
from shm.files.durable import FileFault

if TYPE_CHECKING:
    from broker.engine import Engine

__all__ = ["Reload"]

TELL_AGAIN_S: Final = 0.1
LIVE: Final = ("retry",)  # tables beside relays and pools that take effect at once
FROZEN: Final = ("budget", "ledger", "engine")


class Reload:
    """The reloads of one engine, one at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()
        self._telling = False

    async def run(self) -> dict[str, Any]:
        """Read the file again and take over what may change: {"added", "changed", "removed", "restart_needed"}.

        Each is a list of dotted names, `relay.default`, `pool.main`, `retry.first_s`. Raises EcmError for anything
        that is wrong with the file; then nothing has changed.
        """
        async with self._turn:
            old = self._engine.settings
            if old.source is None:
                hint = "`ctl stop`, then `ctl start --config FILE`"
                raise EcmError("file_missing", "the engine was started without a settings file", hint=hint)
            new = await asyncio.to_thread(load_settings, old.source)
            result = await self._take_over(old, new)
        log.info("settings reloaded", **{name: ", ".join(names) for name, names in result.items() if names})
        self._engine.events.publish("engine", "engine.reloaded", data=result)
        return result

    async def signalled(self) -> None:
        """The same, asked for by a signal: what is wrong stands in the log."""
        try:
            await self.run()
        except EcmError as error:
            log.error("settings not reloaded", reason=error.message, file=error.file, line=error.line)

    async def _take_over(self, old: Settings, new: Settings) -> dict[str, Any]:
        engine = self._engine
        frozen = {name: getattr(old, name) for name in FROZEN}
        in_force = new.model_copy(update=frozen)
        try:
            files = await engine.pacing.files_for(in_force)
        except (OSError, FileFault) as error:
            raise EcmError("io_failed", f"windows of a limit cannot be kept: {plainly(error)}") from error
        try:
            change = engine.relays.apply(in_force)
        except EcmError as error:
            for file in files.values():
                file.close()
            raise EcmError(
                error.code, error.message, file=str(new.source), field=error.field, hint=error.hint
            ) from None
        engine.settings = in_force
        engine.pacing.apply(in_force, engine.relays.names, files)
        self._route()
        engine.relays.share(engine.leases.work())
        self._tell()
        engine.wake()
        result = {
            "added": [f"relay.{name}" for name in change.added] + _missing(new.pools, old.pools, "pool"),
            "changed": [f"relay.{name}" for name in change.changed]
            + [f"pool.{name}" for name, pool in new.pools.items() if old.pools.get(name, pool) != pool]
            + [name for table in LIVE for name in _differing(table, old, new)],
            "removed": [f"relay.{name}" for name in change.removed] + _missing(old.pools, new.pools, "pool"),
            "restart_needed": [name for table in FROZEN for name in _differing(table, old, new)],
        }
        return {name: sorted(names) for name, names in result.items()}

    def _route(self) -> None:
        """Campaigns under way and their leases, by the new settings."""
        engine = self._engine
        for campaign in engine.campaigns.running.values():
            if campaign.origin is not None:
                campaign.relays, campaign.barred = engine.relays.routes(campaign.origin)
        for lease in engine.leases.open.values():
            if lease.action != RUN:
                continue
            mine = {index for index, _ in lease.campaign.relays}
            if not mine.issuperset(lease.relays):
                engine.leases.order(lease, RETURN)
                continue
            gated = engine.pacing.gated(lease.campaign, lease.relays)
            if gated != lease.gated:
                engine.leases.order(lease, RUN, gated=gated)

    # telling the senders

    def _tell(self) -> None:
        if not self._telling:
            self._telling = True
            self._engine.task(self._until_told())

    async def _until_told(self) -> None:
        engine = self._engine
        while deaf := engine.relays.deaf():
            names = [f"{s.kind}-{s.index}.{s.generation}" for s in engine.supervisor.alive() if s.row in deaf]
            message = {"type": "relays", "relays": engine.relays.maps(), "generation": engine.relays.generation}
            engine.actors.tell(names, message)
            await asyncio.sleep(TELL_AGAIN_S)
        self._telling = False


def _missing(here: dict[str, Any], there: dict[str, Any], word: str) -> list[str]:
    """Names of one map that the other lacks."""
    return [f"{word}.{name}" for name in here if name not in there]


def _differing(table: str, old: Settings, new: Settings) -> list[str]:
    """Dotted names of the keys of a table whose values differ."""
    before, after = getattr(old, table).to_map(), getattr(new, table).to_map()
    return [f"{table}.{key}" for key in after if before.get(key) != after[key]]
