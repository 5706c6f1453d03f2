"""The broker's side of shared memory: makes the arena of a start and opens the broker's half of every table."""

from dataclasses import dataclass

from broker.contract.errors import EcmError
from broker.contract.machine import Machine
from broker.contract.paths import StateDir
from broker.supervisor import Slot
from shm.arena import Arena, Shape, ShmFull
from shm.live.clock import EngineClock
from shm.live.counters import CounterTable
from shm.live.faults import FaultTable
from shm.live.grants import GrantTable
from shm.live.heartbeat import Heartbeats
from shm.live.leases import LeaseTable
from shm.live.relays import RelayTable
from shm.live.suppressed import SuppressionLog

__all__ = ["SPARE_RELAYS", "Tables", "arena_name", "make_tables", "place"]


SPARE_RELAYS = 32  # may be added while the engine runs


@dataclass(slots=True)
class Tables:
    """Everything in shared memory that the broker reads or writes."""

    arena: Arena
    slots: list[Slot]
    slots_per_actor: int
    heartbeats: Heartbeats
    leases: LeaseTable
    counters: CounterTable
    grants: GrantTable
    relays: RelayTable
    faults: FaultTable
    suppressed: SuppressionLog
    clock: EngineClock


def place(machine: Machine) -> list[Slot]:
    """One sender per core slice, pinned to it; loader and monitor go where the system likes.

    Row 0 of the arena is the broker's, then the senders', the loader's and the monitor's.
    """
    senders = max(1, int(machine.cores))
    cpus = machine.cpus
    slots = [Slot("sender", index, 1 + index, (cpus[index % len(cpus)],) if cpus else ()) for index in range(senders)]
    return [*slots, Slot("loader", 0, senders + 1, ()), Slot("monitor", 0, senders + 2, ())]


def arena_name(start_id: str) -> str:
    """The name of the arena of a start."""
    return f"ecm-{start_id}"


def make_tables(state: StateDir, machine: Machine, relays: int, start_id: str, wall_ns: int, mono_ns: int) -> Tables:
    """Make the arena; its name is written to STATE/run/arena before it exists, so that no crash can leak it.

    relays   how many are declared now; the rows beside them are for relays that a reload adds
    Raises EcmError shm_full if there is not enough shared memory.
    """
    slots = place(machine)
    name = arena_name(start_id)
    state.arena_name.write_text(name)
    state.arena_name.chmod(0o600)
    shape = Shape(actors=len(slots) + 1, relays=relays + SPARE_RELAYS)
    try:
        arena = Arena.create(name, shape, start_id, machine.boot_id or "")
    except ShmFull as error:
        raise EcmError(
            "shm_full", str(error), hint="give the container more with --shm-size, or free /dev/shm"
        ) from error
    return Tables(
        arena, slots, shape.slots, Heartbeats(arena), LeaseTable(arena), CounterTable(arena), GrantTable(arena),
        RelayTable(arena), FaultTable(arena), SuppressionLog.create(arena, 0),
        EngineClock.create(arena, wall_ns, mono_ns),
    )  # fmt: skip
