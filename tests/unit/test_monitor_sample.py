"""One look at the machine: figures from made-up counters, and from real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.monitor.sample import Sampler
from broker.contract.boot import process_starttime
from broker.contract.machine import budget, probe

SECOND = 1_000_000_000
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
RESOURCES = ("cpu", "memory", "fds", "processes", "disk", "network")
UNLIMITED: dict[str, dict[str, float | int | None]] = {name: {"limit": None, "budget": None} for name in RESOURCES}


class FakeProc:
    """A made-up /proc and /dev/shm that a test changes between two looks."""

    def __init__(self, root: Path) -> None:
        self.proc, self.shm = root / "proc", root / "shm"
        self.shm.mkdir()
        self.write("meminfo", "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n")
        self.write("loadavg", "0.50 0.40 0.30 1/100 1234\n")
        self.cpu((100, 900), (100, 900))
        self.network(0, 0)

    def write(self, name: str, content: str) -> None:
        (self.proc / name).parent.mkdir(parents=True, exist_ok=True)
        (self.proc / name).write_text(content)

    def cpu(self, *cores: tuple[int, int]) -> None:
        """Busy and idle ticks of each core."""
        both = [(sum(busy for busy, _ in cores), sum(idle for _, idle in cores)), *cores]
        names = ["cpu ", *(f"cpu{n}" for n in range(len(cores)))]
        lines = [
            f"{name} {busy - 3} 1 2 {idle - 5} 5 0 0 0 0 0" for name, (busy, idle) in zip(names, both, strict=True)
        ]
        self.write("stat", "\n".join([*lines, "intr 12345", "ctxt 1"]))

    def network(self, received: int, sent: int) -> None:
        self.write(
            "net/dev",
            "Inter-|   Receive\n face |bytes    packets\n"
            "    lo: 999999 1 0 0 0 0 0 0 999999 1 0 0 0 0 0 0\n"
            f"  eth0:{received} 1 0 0 0 0 0 0 {sent} 1 0 0 0 0 0 0\n",
        )

    def process(
        self, pid: int, ticks: int, *, starttime: int = 7, rss: int = 10, shared: int = 4, state: str = "S"
    ) -> None:
        fields = [state, *["0"] * 10, str(ticks), "0", *["0"] * 6, str(starttime), "0"]
        self.write(f"{pid}/stat", f"{pid} (email) campaign: ) {' '.join(fields)}\n")
        self.write(f"{pid}/statm", f"100 {rss} {shared} 1 0 1 0\n")

    def sampler(self) -> Sampler:
        return Sampler(self.proc, "/ecm-abc", UNLIMITED, 0.9, proc_root=self.proc, shm_root=self.shm)


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    """A machine of two idle cores."""
    return FakeProc(tmp_path)


def test_the_first_look_has_levels_and_no_rates(fake: FakeProc) -> None:
    """What is a difference between two looks is unknown at the first."""
    fake.process(5, 0)
    data = fake.sampler().sample([(5, 7)], SECOND)
    used = {name: data["resources"][name]["used"] for name in RESOURCES}
    assert (used["cpu"], used["network"], used["processes"]) == (None, None, 1)
    assert data["actors"] == {5: {"cpu": None, "rss": 10 * PAGE}}
    assert data["machine"] == {
        "cpu": None,
        "cores": {"0": None, "1": None},
        "memory_total": 1024_000,
        "memory_available": 409_600,
        "load": 0.5,
        "arena": 0,
    }


def test_rates_are_differences_over_the_time_that_passed(fake: FakeProc) -> None:
    """CPU of each process in cores, of each core as the busy share, network in bytes a second."""
    sampler = fake.sampler()
    fake.process(5, 100)
    fake.process(6, 0)
    sampler.sample([(5, 7), (6, 7)], SECOND)
    fake.process(5, 100 + TICKS)
    fake.process(6, TICKS // 2)
    fake.cpu((100 + TICKS, 900 + TICKS), (100, 900 + 2 * TICKS))
    fake.network(3000, 1000)
    data = sampler.sample([(5, 7), (6, 7)], 3 * SECOND)
    assert [data["actors"][pid]["cpu"] for pid in (5, 6)] == [0.5, 0.25]
    assert data["resources"]["cpu"]["used"] == 0.75
    assert data["machine"]["cpu"] == 0.25
    assert data["machine"]["cores"] == {"0": 0.5, "1": 0.0}
    assert data["resources"]["network"]["used"] == 2000


def test_shared_pages_are_counted_once(fake: FakeProc) -> None:
    """Memory is what each process has for itself plus the arena with its suppression segments, and no other's."""
    for name, size in (("ecm-abc", 1000), ("ecm-abc.s1", 200), ("ecm-abcd", 50), ("other", 7)):
        (fake.shm / name).write_bytes(b"x" * size)
    fake.process(5, 0, rss=30, shared=20)
    fake.process(6, 0, rss=25, shared=20)
    data = fake.sampler().sample([(5, 0), (6, 0)], SECOND)
    assert data["resources"]["memory"]["used"] == 15 * PAGE + 1200
    assert data["machine"]["arena"] == 1200


def test_a_pid_that_was_given_again_is_not_taken_for_its_predecessor(fake: FakeProc) -> None:
    """Another start time: a stranger is left out, a successor starts without a rate."""
    sampler = fake.sampler()
    fake.process(5, 1000, starttime=7)
    sampler.sample([(5, 7)], SECOND)
    fake.process(5, 10, starttime=8)
    assert sampler.sample([(5, 7)], 2 * SECOND)["actors"] == {}
    assert sampler.sample([(5, 8)], 3 * SECOND)["actors"][5]["cpu"] is None
    assert sampler.sample([(5, 0)], 4 * SECOND)["actors"][5]["cpu"] == 0.0


def test_what_cannot_be_read_is_left_out(fake: FakeProc) -> None:
    """A process that ended, one nobody has waited for yet, and a /proc without anything are no errors."""
    fake.process(5, 0, state="Z")
    assert fake.sampler().sample([(5, 0), (77, 0)], SECOND)["actors"] == {}
    nothing = Sampler(fake.proc / "x", "a", UNLIMITED, 0.9, proc_root=fake.proc / "x", shm_root=fake.proc / "x")
    data = nothing.sample([(1, 0)], SECOND)
    used = {name: data["resources"][name]["used"] for name in RESOURCES}
    assert used == {"cpu": None, "memory": 0, "fds": 0, "processes": 0, "disk": None, "network": None}


def test_a_counter_that_went_back_is_no_negative_rate(fake: FakeProc) -> None:
    """An interface that disappears takes its bytes along."""
    sampler = fake.sampler()
    fake.network(5000, 5000)
    sampler.sample([], SECOND)
    fake.network(0, 0)
    assert sampler.sample([], 2 * SECOND)["resources"]["network"]["used"] == 0


def test_resources_have_exactly_the_keys_of_stats(tmp_path: Path) -> None:
    """share, then used, limit and budget of each resource of this machine."""
    machine = probe(tmp_path)
    data = Sampler(tmp_path, "none", budget(machine, 0.9), 0.9).sample([(os.getpid(), 0)], time.monotonic_ns())
    assert set(data) == {"resources", "actors", "machine"}
    assert list(data["resources"]) == ["share", *RESOURCES]
    assert all(set(data["resources"][name]) == {"used", "limit", "budget"} for name in RESOURCES)
    disk = os.statvfs(tmp_path)
    used = data["resources"]["disk"]["used"]
    assert abs(used - (disk.f_blocks - disk.f_bfree) * disk.f_frsize) < 1 << 30


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Ten idle processes with 200 descriptors each."""
    code = "import os, sys\nfds = [os.dup(0) for _ in range(200)]\nprint('ready', flush=True)\nsys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    started = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(10)]  # type: ignore[call-overload]
    for child in started:
        child.stdout.readline()
    yield started
    for child in started:
        child.communicate()


def test_real_processes_are_measured_for_less_than_a_hundredth_of_a_core(children: list[Any]) -> None:
    """Ten processes: descriptors and memory agree with /proc, and a sample a second costs under 10 ms of CPU."""
    pids = [child.pid for child in children]
    sampler = Sampler(Path("/"), "none", UNLIMITED, 0.9)
    processes = [(pid, process_starttime(pid)) for pid in pids]
    sampler.sample(processes, time.monotonic_ns())
    before = time.process_time()
    for _ in range(10):
        data = sampler.sample(processes, time.monotonic_ns())
    assert (time.process_time() - before) / 10 < 0.010
    assert data["resources"]["processes"]["used"] == 10
    assert data["resources"]["fds"]["used"] == sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
    for pid in pids:
        rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        assert abs(data["actors"][pid]["rss"] - rss) <= 64 * PAGE  # it may still be growing
