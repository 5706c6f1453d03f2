"""One measurement of the machine and of the instance's processes, from /proc.

Measures only: no shared memory, no messages, no decisions. Reads /proc itself, since one second's sample must cost
far less than a hundredth of a core (about 0.1 ms a process).

Invariants
- CPU figures are differences between two looks; the first look has none (None).
- A process is known by pid and start time: a pid that was given again starts anew.
- A process that cannot be read any more (it ended, or belongs to somebody else) is left out, never an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Sampler"]

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class _Process:
    """What one look at a process found: `ticks` of CPU, bytes resident and of these shared, descriptors or None."""

    starttime: int
    ticks: int
    rss: int
    shared: int
    fds: int | None


@dataclass(frozen=True, slots=True)
class _Look:
    """The counters of one moment: the next look's figures are differences to it."""

    at_ns: int = 0
    cores: dict[str, tuple[int, int]] = field(default_factory=dict)
    network_bytes: int | None = None
    processes: dict[int, _Process] = field(default_factory=dict)


class Sampler:
    """Looks at the machine again and again.

    state_dir  whose file system is measured;  arena_name  whose segments in `shm_root` are counted
    budget     limit and budget by resource, from `broker.contract.machine.budget`
    """

    def __init__(
        self,
        state_dir: Path,
        arena_name: str,
        budget: dict[str, dict[str, float | int | None]],
        share: float,
        *,
        proc_root: Path = Path("/proc"),
        shm_root: Path = Path("/dev/shm"),  # noqa: S108 - where POSIX shared memory lives, no temporary file
    ) -> None:
        self._state_dir = state_dir
        self._segment = arena_name.lstrip("/")
        self._budget = budget
        self._share = share
        self._proc = proc_root
        self._shm = shm_root
        self._last = _Look()

    def sample(self, processes: Iterable[tuple[int, int]], now_ns: int) -> dict[str, Any]:
        """Measure. `processes`: (pid, start time in clock ticks or 0) of the instance; `now_ns`: monotonic.

        Returns {"resources": as in `ctl stats --json`, "actors": {pid: {"cpu", "rss"}}, "machine": {...}}.
        resources.used: cpu in cores, memory in bytes, fds, processes: what the instance uses; disk in bytes: what is
        used of its file system; network in bytes a second: what the machine sends and receives.
        """
        last, passed_s = self._last, (now_ns - self._last.at_ns) / 1e9
        cores, fds, memory, arena = self._cores(), 0, 0, self._arena_bytes()
        found: dict[int, _Process] = {}
        actors: dict[int, dict[str, float | int | None]] = {}
        for pid, starttime in processes:
            process = _process(self._proc, pid)
            if process is None or (starttime and process.starttime != starttime):
                continue
            found[pid] = process
            before = last.processes.get(pid)
            same = before is not None and before.starttime == process.starttime and passed_s > 0
            cpu = round((process.ticks - before.ticks) / _TICKS / passed_s, 3) if same and before else None
            actors[pid] = {"cpu": cpu, "rss": process.rss}
            fds += process.fds or 0
            memory += process.rss - process.shared
        network = self._network_bytes()
        self._last = _Look(now_ns, cores, network, found)
        known = [actor["cpu"] for actor in actors.values() if actor["cpu"] is not None]
        used = {
            "cpu": round(sum(known), 3) if known else None,
            "memory": memory + arena,  # shared pages once: the arena's; mapped files can be dropped at any time
            "fds": fds,
            "processes": len(found),
            "disk": _disk_used(self._state_dir),
            "network": _per_second(network, last.network_bytes, passed_s),
        }
        return {
            "resources": {"share": self._share, **{name: {"used": used[name], **self._budget[name]} for name in used}},
            "actors": actors,
            "machine": self._machine(cores, last.cores, arena),
        }

    def _machine(
        self, cores: dict[str, tuple[int, int]], before: dict[str, tuple[int, int]], arena: int
    ) -> dict[str, Any]:
        """The whole machine: shares of its cores that were busy, memory, load, the arena's size."""
        busy = {name: _share(now, before.get(name)) for name, now in cores.items()}
        total, available = _memory(self._proc)
        load = _read(self._proc / "loadavg").split()
        return {
            "cpu": busy.pop("cpu", None),
            "cores": {name.removeprefix("cpu"): share for name, share in busy.items()},
            "memory_total": total,
            "memory_available": available,
            "load": float(load[0]) if load else None,
            "arena": arena,
        }

    def _cores(self) -> dict[str, tuple[int, int]]:
        """Ticks since boot by core, "cpu" being all of them: (busy, all)."""
        found = {}
        for line in _read(self._proc / "stat").splitlines():
            if not line.startswith(b"cpu"):
                break
            name, *numbers = line.split()
            ticks = [int(number) for number in numbers[:8]]  # guest time stands in user time already
            idle = sum(ticks[3:5])
            found[name.decode()] = (sum(ticks) - idle, sum(ticks))
        return found

    def _network_bytes(self) -> int | None:
        """Bytes received and sent since boot, loopback left out; None if they cannot be read."""
        lines = _read(self._proc / "net/dev").splitlines()[2:]
        if not lines:
            return None
        total = 0
        for line in lines:
            name, _, rest = line.partition(b":")
            numbers = rest.split()
            if name.strip() != b"lo" and len(numbers) > 8:
                total += int(numbers[0]) + int(numbers[8])
        return total

    def _arena_bytes(self) -> int:
        """Size of the arena and its suppression segments."""
        try:
            with os.scandir(self._shm) as entries:
                return sum(
                    entry.stat().st_size
                    for entry in entries
                    if entry.name == self._segment or entry.name.startswith(f"{self._segment}.")
                )
        except OSError:  # one of them was removed between two steps: the next sample has it
            return 0


def _process(proc: Path, pid: int) -> _Process | None:
    stat, statm = _read(proc / f"{pid}/stat"), _read(proc / f"{pid}/statm").split()
    if b")" not in stat or len(statm) < 3:
        return None
    # The second field is the program's name in parentheses and may hold anything, ")" and spaces included.
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] == b"Z":
        return None
    return _Process(
        starttime=int(fields[19]),
        ticks=int(fields[11]) + int(fields[12]),
        rss=int(statm[1]) * _PAGE,
        shared=int(statm[2]) * _PAGE,
        fds=_descriptors(proc / f"{pid}/fd"),
    )


def _descriptors(directory: Path) -> int | None:
    """How many descriptors a process has open; None if it is somebody else's."""
    try:
        size = directory.stat().st_size  # the count, from Linux 6.2 on; 0 before
        return size or len(os.listdir(directory))
    except OSError:
        return None


def _memory(proc: Path) -> tuple[int | None, int | None]:
    """(total, available) bytes of the machine."""
    found = {}
    for line in _read(proc / "meminfo").splitlines()[:3]:
        key, _, rest = line.partition(b":")
        found[key] = int(rest.split()[0]) * 1024
    return found.get(b"MemTotal"), found.get(b"MemAvailable")


def _disk_used(state_dir: Path) -> int | None:
    try:
        disk = os.statvfs(state_dir)
    except OSError:
        return None
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def _share(now: tuple[int, int], before: tuple[int, int] | None) -> float | None:
    if before is None or now[1] <= before[1]:
        return None
    return round((now[0] - before[0]) / (now[1] - before[1]), 3)


def _per_second(now: int | None, before: int | None, passed_s: float) -> int | None:
    """None at the first look; 0 rather than less when an interface went away and took its counter along."""
    if now is None or before is None or passed_s <= 0:
        return None
    return round(max(0, now - before) / passed_s)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
