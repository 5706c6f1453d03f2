"""What a rehearsal writes: TOML that means the same, and settings that know no real relay."""

from __future__ import annotations

import sqlite3
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.contract.campaign import parse_campaign
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from broker.contract.settings import check_settings
from ctl.rehearsal_state import copy_lists, copy_suppressions, settings_text
from ctl.toml_text import toml_text

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = st.one_of(TEXT, st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False))
VALUES = st.recursive(
    PLAIN, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3))
)


@given(st.dictionaries(TEXT, VALUES, max_size=6))
def test_toml_that_we_write_means_what_it_meant(document: dict[str, object]) -> None:
    """Read back, every map is the same: any text, any number, tables in tables, tables in lists."""
    assert tomllib.loads(toml_text(document)) == document


def test_nothing_of_a_real_relay_is_in_the_settings_of_a_rehearsal(tmp_path: Path) -> None:
    """Names, pools, From domains and connections stay; hosts, users, passwords, TLS and limits do not."""
    (tmp_path / "pw").write_text("geheim\n")
    text = (
        '[relay.one]\nhost = "smtp.example.org"\nport = 465\nusername = "myself"\npassword_file = "pw"\n'
        'connections = 7\nfrom_domains = ["example.com"]\nrate = { per_second = 3 }\n'
        '[relay."two.2"]\nhost = "198.51.100.7"\n[pool.main]\none = 2\n"two.2" = 1\n'
        "[retry.greylisting]\nfirst_s = 900\n"
    )
    real, errors = check_settings(text, tmp_path / "ecm.toml")
    assert real is not None, errors
    written = settings_text(real, "127.0.0.1", 4025)
    for secret in ("smtp.example.org", "198.51.100.7", "myself", "geheim", "pw"):
        assert secret not in written
    made, errors = check_settings(written, tmp_path / "rehearsal.toml")
    assert made is not None, errors
    assert {(relay.host, relay.port, relay.tls, relay.username) for relay in made.relays.values()} == {
        ("127.0.0.1", 4025, "none", "")
    }
    assert made.weights("main") == real.weights("main")
    assert (made.relays["one"].connections, made.relays["one"].from_domains) == (7, ["example.com"])
    assert not made.relays["one"].rate.limited
    assert made.retry.times("greylisting") == made.retry.times("other") == (1, 1)


def test_of_the_store_only_suppressions_are_taken(tmp_path: Path) -> None:
    """Whatever other tables there are, they are empty in the copy; the original keeps all."""
    real, stage = StateDir(tmp_path / "real"), StateDir(tmp_path / "stage")
    real.root.mkdir()
    with sqlite3.connect(real.store_db) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('0002')")
        for table in ("suppressions", "suppression_changes", "campaigns", "something_new"):
            database.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY AUTOINCREMENT)")
            database.executemany(f"INSERT INTO {table} VALUES (?)", [(1,), (2,)])
    database.close()
    assert copy_suppressions(real, stage) == f"2 suppressed addresses of {real.root}"
    for path, kept in ((stage.store_db, 0), (real.store_db, 2)):
        database = sqlite3.connect(path)
        counts = [
            database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("campaigns", "something_new")
        ]
        assert counts == [kept, kept]
        assert database.execute("SELECT count(*) FROM suppression_changes").fetchone()[0] == 2
        assert database.execute("SELECT count(*) FROM alembic_version").fetchone()[0] == 1
        database.close()


def test_suppressions_that_cannot_be_read_are_told_in_a_line(tmp_path: Path) -> None:
    """No instance: nobody is suppressed. A damaged file: the same, with the reason, and no half copy is left."""
    real, stage = StateDir(tmp_path / "real"), StateDir(tmp_path / "stage")
    assert copy_suppressions(real, stage) == f"no instance in {real.root}: nobody is suppressed"
    real.root.mkdir()
    real.store_db.write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    told = copy_suppressions(real, stage)
    assert told.startswith(f"the suppressions of {real.root} cannot be read, nobody is suppressed here: ")
    assert "\n" not in told
    assert not stage.store_db.exists()


def test_a_list_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """Nothing can be rehearsed without an audience."""
    text = (
        'name = "n"\nsubject = "s"\nfrom = "a@example.com"\ntext = "t"\naudience = "customers"\n'
        '[unsubscribe]\nmailto = "u@example.com"\n'
    )
    spec = parse_campaign(text, "c.toml", {"t": "hello"})
    with pytest.raises(EcmError, match="the list `customers` cannot be read: no such file") as raised:
        copy_lists(StateDir(tmp_path / "real"), StateDir(tmp_path / "stage"), spec)
    assert raised.value.exit == 1
