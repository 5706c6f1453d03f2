"""Which part of the machine the engine may use, and what `ctl doctor` says about it.

Pure: a `Machine` in, maps out. May import the standard library only.

Invariants
- A budget is a ceiling, never a target: nothing is used because it is there.
- An unknown limit gives an unknown budget (None), which stops nobody; descriptors and processes keep their ceiling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.contract.machine import Machine

__all__ = ["FDS_MAX", "PROCESSES_MAX", "budget", "doctor_rows", "grade", "network_bytes_per_second"]

FDS_MAX = 1_000_000  # descriptors: no server needs more, whatever the kernel would give
PROCESSES_MAX = 100_000

GB = 1 << 30

# The classes of servers: cores, bytes of memory, name. A server sold as "4 GB" shows a little less.
GRADES = ((8, 15 * GB, "best"), (4, 7 * GB, "recommended"), (2, int(3.5 * GB), "minimum"))


def budget(machine: Machine, share: float) -> dict[str, dict[str, float | int | None]]:
    """Limit and budget by resource, None = unknown.

    cpu in cores; memory and disk in bytes; fds of one process (what the instance uses in all is held against it,
    which errs on the safe side); processes; network in bytes a second.
    """
    memory = _least(machine.memory_total, machine.memory_limit)
    fds = _least(machine.fds_hard, machine.fds_system)
    processes = _least(machine.processes_limit, machine.pids_max)
    network = network_bytes_per_second(machine)
    return {
        "cpu": {"limit": machine.cores, "budget": round(machine.cores * share, 3)},
        "memory": {"limit": memory, "budget": _part(memory, share)},
        "fds": {"limit": fds, "budget": _least(_part(fds, share), FDS_MAX)},
        "processes": {"limit": processes, "budget": _least(_part(processes, share), PROCESSES_MAX)},
        "disk": {"limit": machine.disk_total, "budget": _part(machine.disk_total, share)},
        "network": {"limit": network, "budget": _part(network, share)},
    }


def network_bytes_per_second(machine: Machine) -> int | None:
    """What the interfaces that are up can carry together; None if one of them does not say.

    Interfaces with a device of their own count: bridges, veth pairs and tunnels only pass on what goes through those.
    """
    up = [interface for interface in machine.interfaces if interface.up and interface.physical]
    speeds = [interface.mbit for interface in up if interface.mbit is not None]
    return sum(speeds) * 1_000_000 // 8 if up and len(speeds) == len(up) else None


def grade(machine: Machine) -> str:
    """The class of this server: best, recommended, minimum or below."""
    memory = _least(machine.memory_total, machine.memory_limit) or 0
    return next((name for cores, size, name in GRADES if machine.cores >= cores and memory >= size), "below")


def doctor_rows(machine: Machine, share: float) -> list[dict[str, Any]]:
    """The lines of `ctl doctor` about the machine: {name, value, budget, note, raw}.

    value, budget  for people, "unknown" where we do not know; budget is None where there is nothing to share
    note           what follows from it, or how to mend it; "" if nothing
    raw            the numbers behind them, in bytes, cores, milliseconds, ...
    """
    shares = budget(machine, share)
    return [
        _server(machine),
        _cpu(machine, shares["cpu"]),
        _memory(machine, shares["memory"]),
        _descriptors(machine, shares["fds"]),
        _processes(machine, shares["processes"]),
        *_disk(machine, shares["disk"]),
        _shared_memory(machine),
        *_network(machine, shares["network"], share),
        _row("container", machine.container or "none", raw={"container": machine.container}),
    ]


def _server(machine: Machine) -> dict[str, Any]:
    name = grade(machine)
    notes = {
        "best": "",
        "recommended": "best: 8 cores and 16 GB",
        "minimum": "recommended: 4 cores and 8 GB",
        "below": "below the minimum of 2 cores and 4 GB: it works, slower",
    }
    return _row("server", "below the minimum" if name == "below" else name, note=notes[name], raw={"grade": name})


def _cpu(machine: Machine, part: dict[str, Any]) -> dict[str, Any]:
    clock = f", {machine.frequency_mhz / 1000:.1f} GHz" if machine.frequency_mhz else ", frequency unknown"
    notes = []
    if machine.cpus_total is not None and len(machine.cpus) < machine.cpus_total:
        notes.append(f"{len(machine.cpus)} of the machine's {machine.cpus_total} cores may be used")
    if machine.cpu_quota is not None and machine.cpu_quota < len(machine.cpus):
        notes.append(f"the control group allows {machine.cpu_quota:g}")
    raw = {**part, "cpus": list(machine.cpus), "frequency_mhz": machine.frequency_mhz, "quota": machine.cpu_quota}
    return _row("cpu", f"{_cores(machine.cores)}{clock}", _cores(part["budget"]), "; ".join(notes), raw)


def _memory(machine: Machine, part: dict[str, Any]) -> dict[str, Any]:
    limited = machine.memory_limit is not None and machine.memory_limit < (machine.memory_total or 1 << 62)
    note = f"the control group allows this of {_size(machine.memory_total)}" if limited else ""
    value = f"{_size(part['limit'])}, {_size(machine.memory_available)} available"
    return _row("memory", value, _size(part["budget"]), note, {**part, "available": machine.memory_available})


def _descriptors(machine: Machine, part: dict[str, Any]) -> dict[str, Any]:
    few = part["limit"] is not None and part["limit"] < FDS_MAX
    note = f"each connection takes one; to raise: LimitNOFILE={FDS_MAX} in the unit" if few else ""
    raw = {**part, "soft": machine.fds_soft, "hard": machine.fds_hard, "system": machine.fds_system}
    return _row("descriptors", f"{_number(part['limit'])} a process", _number(part["budget"]), note, raw)


def _processes(machine: Machine, part: dict[str, Any]) -> dict[str, Any]:
    wanted = len(machine.cpus) + 16
    few = part["limit"] is not None and part["limit"] < wanted
    note = f"fewer than the engine may need ({wanted}): raise TasksMax in the unit" if few else ""
    return _row("processes", _number(part["limit"]), _number(part["budget"]), note, part)


def _disk(machine: Machine, part: dict[str, Any]) -> list[dict[str, Any]]:
    free, total = machine.disk_free, machine.disk_total
    low = free is not None and total is not None and free < total * 0.1
    inodes = machine.inodes_free
    few = inodes is not None and machine.inodes_total is not None and inodes < machine.inodes_total * 0.1
    slow = machine.fsync_ms is not None and machine.fsync_ms > 25
    return [
        _row(
            "disk",
            f"{_size(total)}, {_size(free)} free",
            _size(part["budget"]),
            "less than a tenth is free" if low else "",
            {**part, "free": free},
        ),
        _row(
            "inodes",
            f"{_number(machine.inodes_total)}, {_number(inodes)} free",
            note="less than a tenth is free: each shard takes three" if few else "",
            raw={"limit": machine.inodes_total, "free": inodes},
        ),
        _row(
            "disk latency",
            "unknown" if machine.fsync_ms is None else f"{machine.fsync_ms:.2f} ms for a durable write",
            note="outcomes wait for it: a faster disk sends faster" if slow else "",
            raw={"fsync_ms": machine.fsync_ms},
        ),
    ]


def _shared_memory(machine: Machine) -> dict[str, Any]:
    small = machine.shm_free is not None and machine.shm_free < 64 << 20
    note = "little for the engine's tables: give a container more with --shm-size" if small else ""
    value = f"{_size(machine.shm_total)}, {_size(machine.shm_free)} free"
    return _row("shared memory", value, note=note, raw={"limit": machine.shm_total, "free": machine.shm_free})


def _network(machine: Machine, part: dict[str, Any], share: float) -> list[dict[str, Any]]:
    links = [
        f"{link.name} {f'{link.mbit} Mbit/s' if link.mbit else 'of unknown speed'}"
        for link in machine.interfaces
        if link.up and link.name != "lo"
    ]
    ports = machine.ports[1] - machine.ports[0] + 1 if machine.ports else None
    bbr = machine.congestion == "bbr"
    return [
        _row("network", ", ".join(links) or "unknown", _rate(part["budget"]), raw=part),
        _row(
            "local ports",
            "unknown" if machine.ports is None else f"{_number(ports)} ({machine.ports[0]}-{machine.ports[1]})",
            _number(_part(ports, share)),
            "most connections at a time to one relay's address",
            {"limit": ports, "budget": _part(ports, share)},
        ),
        _row(
            "congestion control",
            machine.congestion or "unknown",
            note="" if bbr else "bbr keeps long lines full: sysctl net.ipv4.tcp_congestion_control=bbr",
            raw={"congestion": machine.congestion},
        ),
    ]


def _row(
    name: str, value: str, budget: str | None = None, note: str = "", raw: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"name": name, "value": value, "budget": budget, "note": note, "raw": raw or {}}


def _part(limit: int | None, share: float) -> int | None:
    return None if limit is None else int(limit * share)


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _cores(value: float) -> str:
    return f"{value:g} core{'' if value == 1 else 's'}"


def _size(value: int | None) -> str:
    """Bytes for people: `23.5 GB` (of 1024^3 bytes, as memory is sold)."""
    if value is None:
        return "unknown"
    for factor, unit in ((1 << 40, "TB"), (GB, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value} bytes"


def _rate(value: int | None) -> str:
    return "unknown" if value is None else f"{value * 8 / 1e6:g} Mbit/s"
