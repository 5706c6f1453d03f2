"""The start after anything (broker/recovery.py): real ledgers in every condition, and orphans of a dead broker."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.contract.boot import process_starttime
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from broker.custody import Custody
from broker.locks import actors_gone
from broker.recovery import Recovery, end_orphans
from broker.running import ShardState
from broker.store.campaigns import ShardRow
from shm.arena import Arena, Shape
from shm.files.durable import FileFault
from shm.files.ledger import Ledger, Policy, States
from shm.live.heartbeat import Heartbeats, Kind
from shm.segment import names

INSTANCE, BOOT, NOW_S = "cd" * 16, "boot-1", 5000
ROWS = 6


class Shards:
    """Ledgers of campaign 1 and what a start makes of them."""

    def __init__(self, directory: Path) -> None:
        self.state = StateDir(directory)
        self.state.campaign(1).mkdir(parents=True)
        self.made: list[ShardRow] = []

    def add(self) -> Ledger:
        """A new shard's ledger, opened as its holder would."""
        number = len(self.made) + 1
        path = self.state.ledger(1, number)
        Ledger.create(path, instance=INSTANCE, campaign=1, shard=number, rows=ROWS)
        self.made.append(ShardRow(number, "other", ROWS))
        return Ledger.open(path, instance=INSTANCE, campaign=1, shard=number, writable=True)

    def lost(self) -> None:
        """A shard whose holder died: a row was sent, one was being sent, two were claimed."""
        ledger = self.add()
        ledger.open_lease(1, 1, BOOT)
        ledger.claim([0, 1, 2, 3])
        for row in (0, 1):
            ledger.sending(row, NOW_S - 10)
        ledger.conclude(0, States.SENT, 250, None, 0, NOW_S - 9)
        ledger.close()

    def recovered(self, policy: Policy = "resend", boot: str = BOOT) -> list[ShardState]:
        """What a new broker finds."""
        custody = Custody(self.state, INSTANCE, boot)
        return Recovery(custody, boot, NOW_S).shards(1, self.made, policy)


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """A campaign without shards."""
    return Shards(tmp_path)


def test_an_untouched_shard_is_counted_from_its_rows(shards: Shards) -> None:
    """It never had a lease, so there is no summary."""
    shards.add().close()
    (found,) = shards.recovered()
    assert (found.counts.pending, found.fresh) == (ROWS, True)


def test_a_shard_that_was_given_back_is_believed(shards: Shards) -> None:
    """Its summary is true: nothing is changed."""
    ledger = shards.add()
    ledger.open_lease(1, 1, BOOT)
    ledger.claim([0])
    ledger.sending(0, NOW_S)
    ledger.conclude(0, States.BOUNCED, 550, None, 0, NOW_S)
    ledger.close_lease(1)
    ledger.close()
    before = shards.state.ledger(1, 1).read_bytes()
    (found,) = shards.recovered()
    assert (found.counts.pending, found.counts.bounced, found.counts.attempts) == (ROWS - 1, 1, 1)
    assert shards.state.ledger(1, 1).read_bytes() == before


@pytest.mark.parametrize(
    ("policy", "boot", "pending", "deferred", "uncertain"),
    [
        ("resend", BOOT, 4, 1, 0),
        ("hold", BOOT, 4, 0, 1),
        ("resend", "boot-2", 2, 3, 0),
        ("hold", "boot-2", 2, 0, 3),
    ],
)
def test_what_a_dead_holder_left_comes_to_rest(
    shards: Shards, policy: Policy, boot: str, pending: int, deferred: int, uncertain: int
) -> None:
    """After a death what was being sent is uncertain, after a power loss what was claimed too; twice is once."""
    shards.lost()
    for _ in range(2):
        (found,) = shards.recovered(policy, boot)
        assert found.counts.audience == ROWS
        assert (found.counts.pending, found.counts.deferred, found.counts.uncertain) == (pending, deferred, uncertain)
        assert (found.counts.sent, found.counts.in_flight) == (1, 0)


def test_a_ledger_of_another_instance_is_refused(shards: Shards) -> None:
    """Whoever takes the campaign up hears which file it is."""
    shards.add().close()
    with pytest.raises(FileFault, match="instance"):
        Recovery(Custody(shards.state, "ef" * 16, BOOT), BOOT, NOW_S).shards(1, shards.made, "resend")


ORPHAN = (
    "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_SH); print(); input()"
)


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds `actors.lock` as an actor of a dead broker does."""
    command = [sys.executable, "-c", ORPHAN, str(StateDir(tmp_path).actors_lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def left_behind(state: StateDir, pid: int, starttime: int) -> str:
    """The arena of a broker that died, with one actor in it."""
    name = f"ecm-{secrets.token_hex(6)}"
    state.run.mkdir()
    state.arena_name.write_text(name)
    state.control.touch()
    arena = Arena.create(name, Shape(actors=2, slots=1, relays=1), "0" * 12, "boot")
    beats = Heartbeats(arena)
    beats.spawned(1, Kind.SENDER, 0, 1, pid, 0)
    beats.hello(1, pid, starttime)
    arena.close()
    return name


def test_orphans_are_ended_and_their_arena_removed(tmp_path: Path, orphan: subprocess.Popen[str]) -> None:
    """Pid and start time name the process; afterwards nothing of the run is left."""
    state = StateDir(tmp_path)
    name = left_behind(state, orphan.pid, process_starttime(orphan.pid))
    end_orphans(state)
    assert orphan.wait(10) == -signal.SIGKILL
    assert names(name) == []
    assert list(state.run.iterdir()) == []


def test_another_process_that_got_the_pid_is_left_alone(
    tmp_path: Path, orphan: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the lock is what tells: it is held, so the engine does not start, and says so."""
    monkeypatch.setattr("broker.recovery.ORPHANS_S", 0.1)
    state = StateDir(tmp_path)
    name = left_behind(state, orphan.pid, process_starttime(orphan.pid) + 1)
    with pytest.raises(EcmError) as caught:
        end_orphans(state)
    assert caught.value.code == "busy"
    assert orphan.poll() is None
    orphan.kill()
    end_orphans(state)
    assert names(name) == []


def test_an_orphan_that_ends_by_itself_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there at the look and is gone at the kill."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    state = StateDir(tmp_path)
    left_behind(state, ended.pid, 5)
    monkeypatch.setattr("broker.recovery.process_starttime", lambda _pid: 5)
    end_orphans(state)
    assert actors_gone(state, wait_s=0)
    assert os.listdir(state.run) == []
