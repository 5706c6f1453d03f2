"""What control groups allow this process: CPU, memory and tasks, under cgroup v1, v2 and both together.

May import the standard library only; reads, never writes. A group is limited by each of its ancestors, so all of
them are read and the smallest limit holds.

Invariants
- What the kernel writes for "no limit" is None here, and so is what cannot be read.
- Nothing raises: a machine without control groups has no limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from broker.contract.kernelfile import number_in, text_of

__all__ = ["Limits", "limits"]

_Number = TypeVar("_Number", int, float)

# v1 writes "no memory limit" as the largest multiple of the page size below 2^63; nothing real comes near it.
MEMORY_BYTES_MAX = 1 << 60


@dataclass(frozen=True, slots=True)
class Limits:
    """The smallest limit of the process's groups and their ancestors.

    version           1, 2, or None without control groups; with both, that of the memory controller
    cpu_cores         quota as a number of cores, perhaps less than one
    memory            bytes;  memory_available  bytes left before a limit is met, page cache counted as free
    tasks             processes and threads together
    """

    version: int | None = None
    cpu_cores: float | None = None
    memory: int | None = None
    memory_available: int | None = None
    tasks: int | None = None


def limits(cgroup_root: Path, proc_root: Path) -> Limits:
    """The limits of this process, read below `cgroup_root` and `proc_root/self`."""
    memberships = dict(_memberships(proc_root))
    roots = dict(_mount_roots(proc_root))
    unified = _unified(cgroup_root, memberships, roots)
    cpu_v1, memory_v1, pids_v1 = (
        _hierarchy(cgroup_root, name, memberships, roots) for name in ("cpu", "memory", "pids")
    )
    memory = [*map(_memory_v1, memory_v1), *map(_memory_v2, unified)]
    version = 1 if memory_v1 else 2 if unified else None
    return Limits(
        version,
        cpu_cores=_least([*map(_cpu_v1, cpu_v1), *map(_cpu_v2, unified)]),
        memory=_least(limit for limit, _ in memory),
        memory_available=_least(limit - used for limit, used in memory if limit is not None and used is not None),
        tasks=_least(number_in(group / "pids.max") for group in (*pids_v1, *unified)),
    )


def _memberships(proc_root: Path) -> Iterator[tuple[str, str]]:
    """(controller, path of our group in its hierarchy); the controller of v2 is ""."""
    for line in text_of(proc_root / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            yield controller, path


def _mount_roots(proc_root: Path) -> Iterator[tuple[str, str]]:
    """(controller, group that its mount shows as the top): in a container this is seldom "/"."""
    for line in text_of(proc_root / "self" / "mountinfo").splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.partition(" ")
        if kind in ("cgroup", "cgroup2") and len(fields.split()) > 4:
            root = fields.split()[3]
            for controller in options.split()[-1].split(",") if kind == "cgroup" else ("",):
                yield controller, root


def _unified(cgroup_root: Path, memberships: dict[str, str], roots: dict[str, str]) -> list[Path]:
    for top in (cgroup_root, cgroup_root / "unified"):
        if (top / "cgroup.controllers").exists() and "" in memberships:
            return _lineage(top, memberships[""], roots.get("", "/"))
    return []


def _hierarchy(cgroup_root: Path, controller: str, memberships: dict[str, str], roots: dict[str, str]) -> list[Path]:
    """Our group of a v1 controller and its ancestors; empty if the controller is not mounted here."""
    if controller not in memberships:
        return []
    tops = [cgroup_root / controller]
    if not tops[0].is_dir() and cgroup_root.is_dir():
        tops = [top for top in cgroup_root.iterdir() if controller in top.name.split(",")]  # mounted as cpu,cpuacct
    return _lineage(tops[0], memberships[controller], roots.get(controller, "/")) if tops else []


def _lineage(top: Path, path: str, mount_root: str) -> list[Path]:
    """Directories of a group and all its ancestors that can be seen below `top`.

    A container may see its own group as the top while /proc/self/cgroup still gives the path on the host: the path
    is tried without the mount's root, and what does not exist is left out.
    """
    group = PurePosixPath(path)
    if group.is_relative_to(mount_root):
        group = PurePosixPath("/") / group.relative_to(mount_root)
    names = [part for part in group.parts[1:] if part != ".."]
    directories = [top.joinpath(*names[:depth]) for depth in range(len(names), -1, -1)]
    return [directory for directory in directories if directory.is_dir()]


def _cpu_v1(group: Path) -> float | None:
    quota, period = number_in(group / "cpu.cfs_quota_us"), number_in(group / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _cpu_v2(group: Path) -> float | None:
    quota, _, period = text_of(group / "cpu.max").partition(" ")
    if not quota.isdigit() or not period.strip().isdigit():
        return None  # "max 100000", or no such file at the top
    return int(quota) / int(period) if int(period) else None


def _memory_v1(group: Path) -> tuple[int | None, int | None]:
    return _memory(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _memory_v2(group: Path) -> tuple[int | None, int | None]:
    return _memory(group, "memory.max", "memory.current", "inactive_file")


def _memory(group: Path, limit_file: str, used_file: str, cache_key: str) -> tuple[int | None, int | None]:
    """(limit, used without page cache that can go at once) of one group, in bytes."""
    limit = number_in(group / limit_file)
    if limit is None or limit >= MEMORY_BYTES_MAX:
        return None, None
    used = number_in(group / used_file)
    if used is None:
        return limit, None
    cache = 0
    for line in text_of(group / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == cache_key and value.isdigit():
            cache = int(value)
    return limit, min(limit, max(0, used - cache))


def _least(values: Iterable[_Number | None]) -> _Number | None:
    return min((value for value in values if value is not None), default=None)
