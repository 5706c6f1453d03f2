"""What an actor is told at its birth, from what the engine is now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker.contract.boot import Boot, process_starttime

if TYPE_CHECKING:
    from broker.engine import Engine
    from broker.supervisor import Slot

__all__ = ["boot_of"]


def boot_of(engine: Engine, slot: Slot) -> Boot:
    """The birth certificate of the next process in a slot. Passwords go to senders only."""
    return Boot(
        kind=slot.kind,
        index=slot.index,
        row=slot.row,
        generation=slot.generation,
        state_dir=str(engine.state.root),
        start_id=engine.start_id,
        instance=engine.instance,
        arena_name=engine.tables.arena.name,
        broker_pid=engine.pid,
        broker_starttime=process_starttime(engine.pid),
        cpus=list(slot.cpus),
        settings=_for_sender(engine, slot) if slot.kind == "sender" else engine.settings.to_public_map(),
    )


def _for_sender(engine: Engine, slot: Slot) -> dict[str, Any]:
    """The settings in force, with every relay in its place; from now on the sender knows these."""
    engine.relays.born(slot.row)
    return {**engine.settings.to_map(), "relays": engine.relays.maps()}
