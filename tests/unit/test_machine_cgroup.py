"""Limits of control groups, on made-up trees of both versions and on this machine's own."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.contract.cgroup import Limits, limits

UNLIMITED_V1 = "9223372036854771712"

Tree = Callable[..., tuple[Path, Path]]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes (cgroup root, proc root) from the text of /proc/self/cgroup and a map of files to contents."""

    def make(membership: str, files: dict[str, object], mountinfo: str = "") -> tuple[Path, Path]:
        proc, root = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        root.mkdir()
        (proc / "self" / "cgroup").write_text(membership)
        (proc / "self" / "mountinfo").write_text(mountinfo)
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"{content}\n")
        return root, proc

    return make


V1 = "4:memory:/a/b\n3:pids:/a/b\n2:cpu,cpuacct:/a/b\n1:name=systemd:/\n"


def test_v1_takes_the_smallest_limit_of_all_ancestors(tree: Tree) -> None:
    """The group itself, its parent and the top each hold one of the smallest."""
    found = limits(
        *tree(
            V1,
            {
                "cpu/a/b/cpu.cfs_quota_us": 300000,
                "cpu/a/b/cpu.cfs_period_us": 100000,
                "cpu/a/cpu.cfs_quota_us": 50000,
                "cpu/a/cpu.cfs_period_us": 100000,
                "cpu/cpu.cfs_quota_us": -1,
                "cpu/cpu.cfs_period_us": 100000,
                "memory/a/b/memory.limit_in_bytes": UNLIMITED_V1,
                "memory/a/memory.limit_in_bytes": 2 << 30,
                "memory/a/memory.usage_in_bytes": 1 << 30,
                "memory/a/memory.stat": f"cache 5\ntotal_inactive_file {256 << 20}",
                "memory/memory.limit_in_bytes": 1 << 62,
                "pids/a/b/pids.max": 100,
                "pids/a/pids.max": "max",
            },
        )
    )
    assert found == Limits(1, 0.5, 2 << 30, (2 << 30) - (1 << 30) + (256 << 20), 100)


def test_v1_without_limits_has_none(tree: Tree) -> None:
    """-1, the largest number and "max" all mean no limit."""
    found = limits(
        *tree(
            V1,
            {
                "cpu/a/b/cpu.cfs_quota_us": -1,
                "cpu/a/b/cpu.cfs_period_us": 100000,
                "memory/a/b/memory.limit_in_bytes": UNLIMITED_V1,
                "pids/a/b/pids.max": "max",
            },
        )
    )
    assert found == Limits(version=1)


def test_v1_controllers_mounted_together_are_found(tree: Tree) -> None:
    """A hierarchy named cpu,cpuacct is the cpu hierarchy."""
    files = {"cpu,cpuacct/a/b/cpu.cfs_quota_us": 150000, "cpu,cpuacct/a/b/cpu.cfs_period_us": 100000}
    assert limits(*tree(V1, files)).cpu_cores == 1.5


def test_v2_takes_the_smallest_limit_of_all_ancestors(tree: Tree) -> None:
    """cpu.max, memory.max and pids.max count on every level; the top has no such files."""
    found = limits(
        *tree(
            "0::/system.slice/ecm.service\n",
            {
                "cgroup.controllers": "cpu memory pids",
                "system.slice/cpu.max": "max 100000",
                "system.slice/memory.max": 1 << 30,
                "system.slice/memory.current": 1 << 30,
                "system.slice/memory.stat": f"inactive_file {128 << 20}",
                "system.slice/ecm.service/cpu.max": "180000 100000",
                "system.slice/ecm.service/memory.max": 4 << 30,
                "system.slice/ecm.service/pids.max": 4096,
            },
        )
    )
    assert found == Limits(2, 1.8, 1 << 30, 128 << 20, 4096)


def test_v2_without_limits_has_none(tree: Tree) -> None:
    """A container's own top with "max" everywhere has no limit."""
    files = {"cgroup.controllers": "cpu", "cpu.max": "max 100000", "memory.max": "max", "pids.max": "max"}
    assert limits(*tree("0::/\n", files)) == Limits(version=2)


def test_a_hybrid_machine_reads_both(tree: Tree) -> None:
    """v1 controllers and a unified tree beside them: each limit is found where it is."""
    found = limits(
        *tree(
            "4:memory:/x\n0::/y\n",
            {
                "memory/x/memory.limit_in_bytes": 1 << 30,
                "unified/cgroup.controllers": "cpu",
                "unified/y/cpu.max": "50000 100000",
            },
        )
    )
    assert found == Limits(1, 0.5, 1 << 30)


def test_a_container_sees_its_group_as_the_top(tree: Tree) -> None:
    """The path on the host, which does not exist inside, still leads to the container's limits and to those below."""
    mountinfo = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    files = {"memory/memory.limit_in_bytes": 2 << 30, "memory/sub/memory.limit_in_bytes": 1 << 30}
    assert limits(*tree("4:memory:/docker/abc/sub\n", files, mountinfo)).memory == 1 << 30


def test_a_container_without_mount_information_uses_its_top(tree: Tree) -> None:
    """What does not exist is left out; the top that can be seen remains."""
    assert limits(*tree("4:memory:/docker/abc\n", {"memory/memory.limit_in_bytes": 2 << 30})).memory == 2 << 30


def test_a_path_outside_the_namespace_stays_inside_the_tree(tree: Tree) -> None:
    """A group of another namespace is given with `..`, which must not lead out of the root."""
    files = {"memory/memory.limit_in_bytes": 2 << 30}
    assert limits(*tree("4:memory:/../../other\n", files)).memory == 2 << 30


def test_garbage_and_nothing_are_no_limits(tree: Tree, tmp_path: Path) -> None:
    """Files that hold no number, and a machine without control groups, have no limits."""
    files = {
        "cpu/cpu.cfs_quota_us": "many",
        "cpu/cpu.cfs_period_us": 0,
        "memory/memory.limit_in_bytes": "",
        "pids/pids.max": "-",
    }
    assert limits(*tree("rubbish\n3:pids:/\n2:cpu:/\n1:memory:/\n", files)) == Limits(version=1)
    assert limits(tmp_path / "none", tmp_path / "none") == Limits()


@pytest.fixture
def group() -> Iterator[str]:
    """A group of this test's own in the machine's cpu, memory and pids hierarchies (cgroup v1)."""
    name = f"ecm-test-{uuid.uuid4().hex[:12]}"
    places = [Path("/sys/fs/cgroup") / controller / name for controller in ("cpu", "memory", "pids")]
    made: list[Path] = []
    try:
        for place in places:
            if not (place.parent / "cgroup.procs").exists():
                pytest.skip(f"no cgroup v1 hierarchy at {place.parent}")
            try:
                place.mkdir()
            except OSError as error:
                pytest.skip(f"{place.parent} cannot be written: {error.strerror}")
            made.append(place)
        yield name
    finally:
        for place in made:
            place.rmdir()


def test_limits_of_a_real_group_are_found(group: str) -> None:
    """A process inside a real cgroup v1 group finds the quota, memory and task limits that were set."""
    root = Path("/sys/fs/cgroup")
    try:
        (root / "cpu" / group / "cpu.cfs_quota_us").write_text("50000")
        (root / "memory" / group / "memory.limit_in_bytes").write_text(str(256 << 20))
        (root / "pids" / group / "pids.max").write_text("77")
    except OSError as error:
        pytest.skip(f"limits of control groups cannot be set here: {error.strerror}")
    code = (
        "import os, sys, json, dataclasses, pathlib\n"
        "for c in ('cpu', 'memory', 'pids'):\n"
        "    pathlib.Path(f'/sys/fs/cgroup/{c}/{sys.argv[1]}/cgroup.procs').write_text(str(os.getpid()))\n"
        "from broker.contract.machine import probe\n"
        "m = probe(None)\n"
        "print(json.dumps([m.cores, m.cpu_quota, m.memory_limit, m.memory_available, m.pids_max, m.cgroup_version]))\n"
    )
    child = subprocess.run([sys.executable, "-c", code, group], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    cores, quota, memory, available, tasks, version = json.loads(child.stdout)
    assert (cores, quota, memory, tasks, version) == (0.5, 0.5, 256 << 20, 77, 1)
    assert 0 < available <= 256 << 20
