"""Facts about the machine, and the budget made of them."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.contract.budget import grade
from broker.contract.machine import Interface, Machine, boot_id, budget, doctor_rows, fsync_ms, probe

GB = 1 << 30


def made(**facts: Any) -> Machine:
    """A machine of which nothing is known but two cores and `facts`."""
    unknown: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(Machine)), None)
    return Machine(**(unknown | {"cpus": (0, 1), "cores": 2.0, "interfaces": ()} | facts))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_this_machine_is_what_the_system_says(tmp_path: Path) -> None:
    """Cores, memory, limits, disk and boot id agree with the standard library's own answers."""
    machine = probe(tmp_path)
    disk = os.statvfs(tmp_path)
    assert machine.cpus == tuple(sorted(os.sched_getaffinity(0)))
    assert 0 < machine.cores <= len(machine.cpus)
    assert machine.memory_total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.memory_available is not None
    assert 0 < machine.memory_available < machine.memory_total
    assert machine.fds_soft == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert machine.disk_total == disk.f_blocks * disk.f_frsize
    assert machine.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip() == boot_id()
    assert "lo" in [interface.name for interface in machine.interfaces]


def test_a_bare_tree_leaves_everything_unknown(tmp_path: Path) -> None:
    """What a machine lacks is None, never an error, and `ctl doctor` says unknown."""
    nothing = tmp_path / "nothing"
    machine = probe(None, nothing, nothing / "proc", nothing / "sys", affinity=[0])
    known = {name for name in Machine.__slots__ if getattr(machine, name) not in (None, ())}
    assert known - {"shm_total", "shm_free"} == {
        "cpus",
        "cpus_total",
        "cores",
        "fds_soft",
        "fds_hard",
        "processes_limit",
    }
    assert boot_id(nothing) == ""
    rows = {row["name"]: row["value"] for row in doctor_rows(machine, 0.9)}
    assert rows["memory"] == "unknown, unknown available"
    assert rows["network"] == rows["local ports"] == rows["disk latency"] == rows["congestion control"] == "unknown"


def test_a_made_up_machine_is_read_as_written(tmp_path: Path) -> None:
    """Each fact comes from its file under the given roots."""
    proc = write(
        tmp_path / "proc",
        {
            "cpuinfo": "processor : 0\ncpu MHz\t\t: 2100.5\nprocessor : 1\ncpu MHz\t\t: 3000.25\n",
            "meminfo": "MemTotal:       8000 kB\nMemFree: 1 kB\nMemAvailable:   5000 kB\n",
            "sys/fs/file-max": "9223372036854775807\n",
            "sys/kernel/pid_max": "32768\n",
            "sys/kernel/threads-max": "1000\n",
            "sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
            "sys/net/ipv4/tcp_congestion_control": "cubic\n",
            "1/cgroup": "0::/docker/abc\n",
        },
    )
    sys_root = write(
        tmp_path / "sys",
        {
            "class/net/eth0/flags": "0x1003\n",
            "class/net/eth0/speed": "1000\n",
            "class/net/eth0/device/vendor": "0x1af4\n",
            "class/net/eth1/flags": "0x1002\n",
            "class/net/eth1/speed": "-1\n",
            "class/net/lo/flags": "0x9\n",
        },
    )
    machine = probe(tmp_path / "later" / "state", tmp_path / "cgroup", proc, sys_root, affinity=[3, 1])
    assert (machine.cpus, machine.cores, machine.frequency_mhz) == ((1, 3), 2.0, 3000.25)
    assert (machine.memory_total, machine.memory_available) == (8000 * 1024, 5000 * 1024)
    assert (machine.fds_system, machine.pids_max, machine.ports) == (2**63 - 1, 1000, (32768, 60999))
    assert (machine.congestion, machine.container) == ("cubic", "docker")
    assert machine.interfaces == (
        Interface("eth0", up=True, mbit=1000, physical=True),
        Interface("eth1", up=False, mbit=None, physical=False),
        Interface("lo", up=True, mbit=None, physical=False),
    )
    assert machine.disk_total == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize, "nearest that exists"


def test_arm_tells_its_highest_frequency(tmp_path: Path) -> None:
    """Where /proc/cpuinfo has no clock, the driver's highest is taken."""
    sys_root = write(tmp_path, {"devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2800000\n"})
    assert probe(None, tmp_path / "x", tmp_path / "x", sys_root).frequency_mhz == 2800.0


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"run/systemd/container": "lxc\n"}, "lxc"),
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": ""}, "podman"),
        ({}, None),
    ],
)
def test_containers_are_known_by_their_marks(tmp_path: Path, files: dict[str, str], kind: str | None) -> None:
    """Each engine leaves its own mark beside /proc."""
    write(tmp_path, files)
    assert probe(None, tmp_path, tmp_path / "proc", tmp_path).container == kind


def test_quota_beats_affinity_and_affinity_beats_quota(tmp_path: Path) -> None:
    """Usable cores are the smaller of the two."""
    proc = write(tmp_path / "proc", {"self/cgroup": "0::/\n"})
    root = write(tmp_path / "cgroup", {"cgroup.controllers": "cpu", "cpu.max": "150000 100000"})
    assert probe(None, root, proc, affinity=[0, 1, 2, 3]).cores == 1.5
    assert probe(None, root, proc, affinity=[2]).cores == 1.0


def test_io_counters_are_those_of_the_state_directorys_device(tmp_path: Path) -> None:
    """The line of /proc/diskstats with the device's numbers counts, in bytes of 512 to the sector."""
    device = tmp_path.stat().st_dev
    line = f" {os.major(device)} {os.minor(device)} vda 10 1 100 5 20 2 200 7 0 33 40 0 0 0 0\n"
    proc = write(tmp_path / "proc", {"diskstats": "   7 0 loop0 1 1 1 1 1 1 1 1 1 1 1\n" + line})
    io = probe(tmp_path / "state", tmp_path, proc).disk_io
    assert io is not None
    assert (io.device, io.reads, io.read_bytes, io.writes, io.write_bytes, io.busy_ms) == (
        "vda",
        10,
        51200,
        20,
        102400,
        33,
    )


def test_durable_writes_are_timed_and_leave_nothing(tmp_path: Path) -> None:
    """A directory that can be written gives a time; one that is not there gives None."""
    took = fsync_ms(tmp_path)
    assert took is not None
    assert took > 0
    assert list(tmp_path.iterdir()) == []
    assert fsync_ms(tmp_path / "missing") is None
    assert probe(tmp_path, measure_disk=True).fsync_ms is not None


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one() -> None:
    """A process that starts with few descriptors gets what it is allowed."""
    code = (
        "import resource as r\nfrom broker.contract.machine import raise_fd_limit\n"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]\nr.setrlimit(r.RLIMIT_NOFILE, (64, hard))\n"
        "now = raise_fd_limit()\nassert r.getrlimit(r.RLIMIT_NOFILE) == (hard, hard)\n"
        "assert now == (None if hard == r.RLIM_INFINITY else hard)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_budget_is_the_share_of_the_smallest_limit() -> None:
    """Container limits beat the host's, hard limits beat soft ones, and the ceilings of the promises hold."""
    machine = made(
        memory_total=8 * GB,
        memory_limit=2 * GB,
        fds_soft=1024,
        fds_hard=4_000_000,
        fds_system=3_000_000,
        processes_limit=None,
        pids_max=500_000,
        disk_total=100,
        interfaces=(
            Interface("eth0", True, 1000, True),
            Interface("br0", True, 10000, False),
            Interface("eth1", False, 10, True),
        ),
    )
    shares = budget(machine, 0.9)
    assert shares["cpu"] == {"limit": 2.0, "budget": 1.8}
    assert shares["memory"] == {"limit": 2 * GB, "budget": int(1.8 * GB)}
    assert shares["fds"] == {"limit": 3_000_000, "budget": 1_000_000}
    assert shares["processes"] == {"limit": 500_000, "budget": 100_000}
    assert shares["disk"] == {"limit": 100, "budget": 90}
    assert shares["network"] == {"limit": 125_000_000, "budget": 112_500_000}


def test_unknown_limits_have_no_budget() -> None:
    """What is not known stops nothing but what has a ceiling; one link of unknown speed makes the sum unknown."""
    shares = budget(made(interfaces=(Interface("a", True, 1000, True), Interface("b", True, None, True))), 0.9)
    assert {name: part["budget"] for name, part in shares.items() if name != "cpu"} == {
        "memory": None,
        "fds": 1_000_000,
        "processes": 100_000,
        "disk": None,
        "network": None,
    }


@pytest.mark.parametrize(
    ("cores", "memory_gb", "name"),
    [
        (1, 4, "below"),
        (2, 2, "below"),
        (2, 3.8, "minimum"),
        (4, 4, "minimum"),
        (4, 7.7, "recommended"),
        (8, 8, "recommended"),
        (8, 15.6, "best"),
        (64, 512, "best"),
    ],
)
def test_servers_are_graded_by_the_promised_classes(cores: int, memory_gb: float, name: str) -> None:
    """2 cores and 4 GB, 4 and 8, 8 and 16; both must be there, and a "4 GB" server shows a little less."""
    assert grade(made(cores=float(cores), memory_total=int(memory_gb * GB))) == name


def test_doctor_puts_the_budget_beside_each_limit_and_names_the_cure() -> None:
    """Human words and raw numbers in each row; a note where something follows."""
    machine = made(
        cpus=(0, 1),
        cpus_total=4,
        cpu_quota=1.5,
        cores=1.5,
        frequency_mhz=2600.0,
        memory_total=64 * GB,
        memory_limit=2 * GB,
        memory_available=GB,
        fds_hard=20_000,
        processes_limit=10,
        disk_total=100 * GB,
        disk_free=5 * GB,
        inodes_total=1000,
        inodes_free=50,
        fsync_ms=40.0,
        shm_total=64 << 20,
        shm_free=60 << 20,
        congestion="cubic",
        ports=(32768, 60999),
        interfaces=(Interface("eth0", True, None, True),),
        container="docker",
    )
    rows = {row["name"]: row for row in doctor_rows(machine, 0.9)}
    assert all(set(row) == {"name", "value", "budget", "note", "raw"} for row in rows.values())
    shown = {name: (row["value"], row["budget"]) for name, row in rows.items()}
    assert shown == {
        "server": ("below the minimum", None),
        "cpu": ("1.5 cores, 2.6 GHz", "1.35 cores"),
        "memory": ("2.0 GB, 1.0 GB available", "1.8 GB"),
        "descriptors": ("20,000 a process", "18,000"),
        "processes": ("10", "9"),
        "disk": ("100.0 GB, 5.0 GB free", "90.0 GB"),
        "inodes": ("1,000, 50 free", None),
        "disk latency": ("40.00 ms for a durable write", None),
        "shared memory": ("64.0 MB, 60.0 MB free", None),
        "network": ("eth0 of unknown speed", "unknown"),
        "local ports": ("28,232 (32768-60999)", "25,408"),
        "congestion control": ("cubic", None),
        "container": ("docker", None),
    }
    assert rows["cpu"]["note"] == "2 of the machine's 4 cores may be used; the control group allows 1.5"
    assert rows["memory"]["note"] == "the control group allows this of 64.0 GB"
    assert rows["memory"]["raw"] == {"limit": 2 * GB, "budget": int(1.8 * GB), "available": GB}
    for name, word in (
        ("server", "below"),
        ("descriptors", "LimitNOFILE=1000000"),
        ("processes", "TasksMax"),
        ("disk", "tenth"),
        ("inodes", "tenth"),
        ("disk latency", "faster"),
        ("shared memory", "--shm-size"),
        ("congestion control", "bbr"),
    ):
        assert word in rows[name]["note"], name
