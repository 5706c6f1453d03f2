"""Where the files of an instance lie, and which instance and settings a command means."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.contract import paths
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir, which_config, which_state
from broker.contract.sockets import check_lengths, ipc


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, no variables set, and no system-wide installation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ECM_STATE", raising=False)
    monkeypatch.delenv("ECM_CONFIG", raising=False)
    monkeypatch.setattr(paths, "SYSTEM_STATE", tmp_path / "system")
    monkeypatch.setattr(paths, "SYSTEM_CONFIG", tmp_path / "etc" / "ecm.toml")
    return tmp_path


def test_state_is_looked_for_in_the_documented_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Option, variable, ./var with an instance, the service's directory, ./var: each gives way to the one before."""
    assert which_state(None) == home / "var"
    (home / "system").mkdir()
    assert which_state(None) == home / "system"
    (home / "var").mkdir()
    assert which_state(None) == home / "system", "an empty ./var is no instance"
    (home / "var" / "instance").write_text("0" * 32)
    assert which_state(None) == home / "var"
    monkeypatch.setenv("ECM_STATE", "elsewhere")
    assert which_state(None) == home / "elsewhere"
    assert which_state("here/../there") == home / "there"


def test_config_is_looked_for_in_the_documented_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Option, variable, ./ecm.toml, /etc: else the built-in settings. A file that was named need not exist."""
    assert which_config(None) is None
    (home / "etc").mkdir()
    (home / "etc" / "ecm.toml").touch()
    assert which_config(None) == home / "etc" / "ecm.toml"
    (home / "ecm.toml").touch()
    assert which_config(None) == home / "ecm.toml"
    monkeypatch.setenv("ECM_CONFIG", "missing.toml")
    assert which_config(None) == home / "missing.toml"
    assert which_config("option.toml") == home / "option.toml"


def test_state_dir_is_absolute_and_follows_no_link(home: Path) -> None:
    """A relative directory keeps its meaning after chdir, and a short link to a long path stays short."""
    (home / ("long" * 20)).mkdir()
    (home / "s").symlink_to(home / ("long" * 20))
    assert StateDir("s").root == home / "s"
    assert StateDir(Path("s")) == StateDir(home / "s")


def test_files_of_a_campaign_have_one_name_each(tmp_path: Path) -> None:
    """All names inside the state directory differ."""
    state = StateDir(tmp_path)
    names = [getattr(state, name) for name, kind in vars(StateDir).items() if isinstance(kind, property)]
    names += [state.campaign(7), state.bundle(7), state.shard(7, 1), state.ledger(7, 1), state.replies(7, 1)]
    names += [state.rejects(7), state.windows("campaign-7"), state.actors_socket("0123456789ab")]
    assert len(set(names)) == len(names)
    assert all(name.is_relative_to(tmp_path) for name in names)
    assert state.shard(7, 1).name == "shard-000001.shard"


def test_socket_paths_of_107_bytes_pass_and_of_108_are_refused() -> None:
    """The longest socket path decides, counted in bytes; the error names its length and the limit."""
    tail = len("/run/0123456789ab")
    check_lengths(StateDir("/" + "x" * (107 - tail - 1)))
    with pytest.raises(EcmError, match="108 bytes, the system allows 107") as caught:
        check_lengths(StateDir("/" + "x" * (108 - tail - 1)))
    assert caught.value.code == "path_too_long"
    with pytest.raises(EcmError):
        check_lengths(StateDir("/" + "ä" * ((107 - tail) // 2 + 1)))


def test_ipc_address_names_the_socket_file() -> None:
    """An ipc address is the path behind ipc://."""
    assert ipc(Path("/var/run/control")) == "ipc:///var/run/control"
