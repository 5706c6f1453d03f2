"""Where everything of one instance lies, and which instance and settings a command means.

May import the standard library only, and little of it: every command of `ctl` loads this module.

Invariants
- Nothing here creates, opens or changes a file; looking whether one exists is all.
- A `StateDir` is absolute, so it means the same after the engine has changed its working directory.
- No other module spells a name inside the state directory.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["SYSTEM_CONFIG", "SYSTEM_STATE", "StateDir", "which_config", "which_state"]

SYSTEM_STATE = Path("/var/lib/email-campaign-manager")
SYSTEM_CONFIG = Path("/etc/email-campaign-manager/ecm.toml")
LOCAL_STATE = Path("var")
LOCAL_CONFIG = Path("ecm.toml")


def _absolute(path: Path | str) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() follows links, which may lengthen a socket's path


class StateDir:
    """The state directory of one instance: the name of each file in it.

    root           the directory, absolute
    instance       the instance id, 32 hex digits, made once
    store_db       campaigns, shards, jobs, suppression (written by the broker)
    audience_db    lists and subscribers (written by the loader)
    broker_lock    held by the one broker;  actors_lock  held, shared, by every actor for life
    run            sockets and what tells of the running engine
    control        ROUTER socket of the control API;  events  PUB socket
    arena_name     name of the shared memory arena, written before the arena is made
    started        JSON {pid, started, start_id} of the running engine
    log            engine.log lies in `log`
    clock          the last engine time known
    lists_jobs     side files of imports
    """

    __slots__ = ("root",)

    root: Path

    def __init__(self, path: Path | str) -> None:
        self.root = _absolute(path)

    def __repr__(self) -> str:
        return f"StateDir({str(self.root)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StateDir) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    @property
    def instance(self) -> Path:
        return self.root / "instance"

    @property
    def store_db(self) -> Path:
        return self.root / "store.db"

    @property
    def audience_db(self) -> Path:
        return self.root / "audience.db"

    @property
    def broker_lock(self) -> Path:
        return self.root / "broker.lock"

    @property
    def actors_lock(self) -> Path:
        return self.root / "actors.lock"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def control(self) -> Path:
        return self.run / "control"

    @property
    def events(self) -> Path:
        return self.run / "events"

    @property
    def arena_name(self) -> Path:
        return self.run / "arena"

    @property
    def started(self) -> Path:
        return self.run / "started"

    @property
    def log(self) -> Path:
        return self.root / "log" / "engine.log"

    @property
    def campaigns(self) -> Path:
        return self.root / "campaigns"

    @property
    def trace(self) -> Path:
        return self.root / "trace"

    @property
    def clock(self) -> Path:
        return self.root / "clock"

    @property
    def lists_jobs(self) -> Path:
        return self.root / "jobs"

    def campaign(self, campaign: int) -> Path:
        """Directory of a campaign's bundle, shards, ledgers and replies."""
        return self.campaigns / str(campaign)

    def bundle(self, campaign: int) -> Path:
        return self.campaign(campaign) / "bundle"

    def shard(self, campaign: int, shard: int) -> Path:
        return self.campaign(campaign) / f"shard-{shard:06d}.shard"

    def ledger(self, campaign: int, shard: int) -> Path:
        return self.campaign(campaign) / f"shard-{shard:06d}.ledger"

    def replies(self, campaign: int, shard: int) -> Path:
        return self.campaign(campaign) / f"shard-{shard:06d}.replies"

    def rejects(self, campaign: int) -> Path:
        return self.campaign(campaign) / "rejects.csv"

    def windows(self, owner: str) -> Path:
        """File of the rate windows of `owner`: `campaign-7` or `relay-default`."""
        return self.root / "windows" / owner

    def actors_socket(self, start_id: str) -> Path:
        """Socket the actors of one start talk on; another start never meets it."""
        return self.run / start_id


def which_state(option: str | None) -> Path:
    """The state directory a command means.

    The option, else `ECM_STATE`, else `./var` if it holds an instance, else the installed service's
    directory if this user can enter it, else `./var`. The answer is absolute and need not exist.
    """
    chosen = option or os.environ.get("ECM_STATE")
    if chosen:
        return _absolute(chosen)
    local = StateDir(LOCAL_STATE)
    if local.instance.is_file():
        return local.root
    # Search permission is what STATE (0710) gives to the service's group; it suffices to reach the sockets.
    if SYSTEM_STATE.is_dir() and os.access(SYSTEM_STATE, os.X_OK):
        return SYSTEM_STATE
    return local.root


def which_config(option: str | None) -> Path | None:
    """The settings file `ctl start` reads, or None for the built-in settings (which have no relay).

    A file that was named, by option or by `ECM_CONFIG`, is returned even if it does not exist: reading
    it then says so, instead of silently starting with other settings.
    """
    chosen = option or os.environ.get("ECM_CONFIG")
    if chosen:
        return _absolute(chosen)
    for candidate in (LOCAL_CONFIG, SYSTEM_CONFIG):
        if candidate.is_file():
            return _absolute(candidate)
    return None
