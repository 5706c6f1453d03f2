"""Facts about the machine, as far as this process may use it. The same probe serves engine, doctor and monitor.

May import the standard library only; changes nothing but, in `raise_fd_limit`, this process's own limit. Says what
is, never what should be: the shares are `budget.py`'s.

Invariants
- What is not known is None, never 0 and never a guess.
- Limits of a container beat the figures of its host.
- Nothing raises because of what a machine lacks.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from broker.contract import cgroup
from broker.contract.budget import budget, doctor_rows
from broker.contract.kernelfile import number_in, text_of

__all__ = ["DiskIo", "Interface", "Machine", "boot_id", "budget", "doctor_rows", "fsync_ms", "probe", "raise_fd_limit"]

SECTOR_BYTES = 512  # the unit of /proc/diskstats, whatever the device's own is
FSYNC_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface: `mbit` None = the driver does not say; `physical` = has a device of its own."""

    name: str
    up: bool
    mbit: int | None
    physical: bool


@dataclass(frozen=True, slots=True)
class DiskIo:
    """Counters of a block device since boot."""

    device: str
    reads: int
    read_bytes: int
    writes: int
    write_bytes: int
    busy_ms: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process finds. Sizes in bytes; limits None = none, or unknown.

    cpus              numbers of the cores we may run on (affinity);  cpus_total  cores of the machine
    cores             what they add up to under the cgroup quota: 0.5 = half a core
    memory_available  what can be had now: the system's or the cgroup's, whichever is less
    fds_soft, fds_hard  descriptors of one process;  fds_system  of the whole machine
    processes_limit   RLIMIT_NPROC;  pids_max  cgroup or kernel, whichever is less
    disk_*, inodes_*  the file system of the state directory, as an ordinary user may use it
    fsync_ms          median time until a small write is on that disk; None = not measured
    shm_*             shared memory (/dev/shm)
    ports             first and last local port of outgoing connections
    container         its kind, None = no container
    """

    cpus: tuple[int, ...]
    cpus_total: int | None
    cpu_quota: float | None
    cores: float
    frequency_mhz: float | None
    memory_total: int | None
    memory_available: int | None
    memory_limit: int | None
    fds_soft: int | None
    fds_hard: int | None
    fds_system: int | None
    processes_limit: int | None
    pids_max: int | None
    disk_total: int | None
    disk_free: int | None
    inodes_total: int | None
    inodes_free: int | None
    disk_io: DiskIo | None
    fsync_ms: float | None
    shm_total: int | None
    shm_free: int | None
    interfaces: tuple[Interface, ...]
    ports: tuple[int, int] | None
    congestion: str | None
    cgroup_version: int | None
    container: str | None
    boot_id: str | None


def probe(
    state_dir: Path | None,
    cgroup_root: Path = Path("/sys/fs/cgroup"),
    proc_root: Path = Path("/proc"),
    sys_root: Path = Path("/sys"),
    *,
    affinity: Iterable[int] | None = None,
    measure_disk: bool = False,
) -> Machine:
    """Look at the machine: about 2 ms, or some fsyncs more with `measure_disk` (which writes to the state directory).

    The roots, and `affinity` in place of our own, are for tests on made-up trees. `state_dir` need not exist yet.
    """
    cpus = tuple(sorted(os.sched_getaffinity(0) if affinity is None else affinity))
    group = cgroup.limits(cgroup_root, proc_root)
    memory = _memory_info(proc_root)
    disk = _file_system(state_dir)
    shm = _file_system(Path("/dev/shm"))  # noqa: S108 - where POSIX shared memory lives, no temporary file
    fds = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Machine(
        cpus=cpus,
        cpus_total=os.cpu_count(),
        cpu_quota=group.cpu_cores,
        cores=min(float(len(cpus)), group.cpu_cores or float(len(cpus))),
        frequency_mhz=_frequency_mhz(proc_root, sys_root),
        memory_total=memory.get("MemTotal"),
        memory_available=_least(memory.get("MemAvailable"), group.memory_available),
        memory_limit=group.memory,
        fds_soft=_limit(fds[0]),
        fds_hard=_limit(fds[1]),
        fds_system=number_in(proc_root / "sys/fs/file-max"),
        processes_limit=_limit(resource.getrlimit(resource.RLIMIT_NPROC)[0]),
        pids_max=_least(
            group.tasks, number_in(proc_root / "sys/kernel/pid_max"), number_in(proc_root / "sys/kernel/threads-max")
        ),
        disk_total=disk and disk.f_blocks * disk.f_frsize,
        disk_free=disk and disk.f_bavail * disk.f_frsize,
        inodes_total=(disk and disk.f_files) or None,  # btrfs has no fixed number and says 0
        inodes_free=disk.f_favail if disk and disk.f_files else None,
        disk_io=_disk_io(state_dir, proc_root),
        fsync_ms=fsync_ms(state_dir) if measure_disk and state_dir is not None else None,
        shm_total=shm and shm.f_blocks * shm.f_frsize,
        shm_free=shm and shm.f_bavail * shm.f_frsize,
        interfaces=_interfaces(sys_root),
        ports=_ports(proc_root),
        congestion=text_of(proc_root / "sys/net/ipv4/tcp_congestion_control").strip() or None,
        cgroup_version=group.version,
        container=_container(proc_root),
        boot_id=boot_id(proc_root) or None,
    )


def boot_id(proc_root: Path = Path("/proc")) -> str:
    """The kernel's name for this boot; "" if it has none. Another one means that the machine went down between."""
    return text_of(proc_root / "sys/kernel/random/boot_id").strip()


def raise_fd_limit() -> int | None:
    """Raise this process's soft limit of descriptors to the hard one; children inherit it. Returns the limit now.

    None = no limit. A kernel that refuses leaves it as it was.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return _limit(soft)
    return _limit(hard)


def fsync_ms(directory: Path) -> float | None:
    """Median milliseconds of a 4 kB write and fdatasync in `directory`; None if it cannot be written."""
    path = directory / f".fsync-{os.getpid()}"
    times = []
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        path.unlink()
        for n in range(FSYNC_ROUNDS):
            os.pwrite(descriptor, bytes([n]) * 4096, 0)
            started = time.perf_counter()
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - started)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return round(sorted(times)[len(times) // 2] * 1000, 3)


def _limit(value: int) -> int | None:
    return None if value == resource.RLIM_INFINITY else value


def _frequency_mhz(proc_root: Path, sys_root: Path) -> float | None:
    """The fastest core's clock: as it runs now, or else its highest (ARM does not tell the former)."""
    lines = [line for line in text_of(proc_root / "cpuinfo").splitlines() if line.startswith("cpu MHz")]
    running = [float(line.partition(":")[2]) for line in lines]
    if running:
        return max(running)
    highest = number_in(sys_root / "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    return highest / 1000 if highest else None


def _memory_info(proc_root: Path) -> dict[str, int]:
    found = {}
    for line in text_of(proc_root / "meminfo").splitlines():
        key, _, rest = line.partition(":")
        value = rest.split()
        if value and value[0].isdigit():
            found[key] = int(value[0]) * 1024
    return found


def _existing(path: Path | None) -> Path | None:
    """`path`, or the nearest directory above it that exists."""
    if path is None:
        return None
    return next((place for place in (path.absolute(), *path.absolute().parents) if place.exists()), None)


def _file_system(path: Path | None) -> os.statvfs_result | None:
    place = _existing(path)
    try:
        return os.statvfs(place) if place is not None else None
    except OSError:
        return None


def _disk_io(state_dir: Path | None, proc_root: Path) -> DiskIo | None:
    """Counters of the device that holds the state directory; None for what has no device (tmpfs, overlay, btrfs)."""
    place = _existing(state_dir)
    if place is None:
        return None
    device = place.stat().st_dev
    wanted = [str(os.major(device)), str(os.minor(device))]
    for line in text_of(proc_root / "diskstats").splitlines():
        fields = line.split()
        if fields[:2] == wanted and len(fields) > 12:
            reads, _, read_sectors, _, writes, _, write_sectors, _, _, busy_ms = map(int, fields[3:13])
            return DiskIo(fields[2], reads, read_sectors * SECTOR_BYTES, writes, write_sectors * SECTOR_BYTES, busy_ms)
    return None


def _interfaces(sys_root: Path) -> tuple[Interface, ...]:
    try:
        places = sorted((sys_root / "class/net").iterdir())
    except OSError:
        return ()
    found = []
    for place in places:
        speed = number_in(place / "speed")  # -1 or an error where the driver does not know
        flags = text_of(place / "flags").strip()
        up = bool(int(flags, 16) & 1) if flags.startswith("0x") else False
        found.append(Interface(place.name, up, speed if speed and speed > 0 else None, (place / "device").exists()))
    return tuple(found)


def _ports(proc_root: Path) -> tuple[int, int] | None:
    numbers = text_of(proc_root / "sys/net/ipv4/ip_local_port_range").split()
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None


def _container(proc_root: Path) -> str | None:
    """The kind of container we are in, by the marks container engines leave beside /proc."""
    top = proc_root.parent
    named = text_of(top / "run/systemd/container").strip()
    if named:
        return named
    for mark, kind in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if (top / mark).exists():
            return kind
    groups = text_of(proc_root / "1/cgroup")
    return next((kind for kind in ("docker", "kubepods", "lxc", "libpod") if f"/{kind}" in groups), None)


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
