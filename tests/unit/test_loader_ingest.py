"""Importing files into lists that are kept."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from actors.loader import aside
from actors.loader.ingest import import_list, unsubscribe
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from broker.store.audience import AudienceStore, lists, show


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "state")
    state.root.mkdir()
    return state


def load(state: StateDir, content: str, name: str = "r.csv", **args: Any) -> dict[str, Any]:
    path = state.root.parent / name
    path.write_text(content)
    full = {"list": "people", "path": str(path), "email_column": None, "dry_run": False, **args}
    return import_list(full, lambda _data: None, lambda: False, state=state, now_s=5.0, job=3)


def members(state: StateDir) -> dict[str, dict[str, Any]]:
    store = AudienceStore.open(state.audience_db)
    try:
        return dict(store.iterate(store.get("people").id))
    finally:
        store.close()


def counts(result: dict[str, Any]) -> dict[str, int]:
    names = ("rows", "rejected", "duplicates", "added", "updated", "unchanged", "unsubscribed_kept")
    found = {name: result[name] for name in names}
    assert found["rows"] == sum(found.values()) - found["rows"]
    return {name: number for name, number in found.items() if number}


def test_import_counts_every_row(state: StateDir) -> None:
    """New, repeated and rejected rows are counted, and the list holds the first row of each address."""
    result = load(state, "E-Mail,Name\nann@example.com,Ann\nbad,x\nANN@example.com,Later\nbob@example.com,Bob\n")
    assert counts(result) == {"rows": 4, "rejected": 1, "duplicates": 1, "added": 2}
    assert result["rejects_file"] == str(state.lists_jobs / "rejects-3.csv")
    assert members(state) == {
        "ann@example.com": {"email": "ann@example.com", "name": "Ann"},
        "bob@example.com": {"email": "bob@example.com", "name": "Bob"},
    }
    row = show(state.audience_db, "people")
    assert (row.subscribed, row.unsubscribed, row.fields, row.changed) == (2, 0, ["email", "name"], 5.0)


def test_importing_again_changes_only_what_differs(state: StateDir) -> None:
    """The same file again changes nothing; other values are updates; fields that are not named stay."""
    text = "email,name,town\nann@example.com,Ann,Ulm\nbob@example.com,Bob,Ulm\n"
    load(state, text)
    assert counts(load(state, text)) == {"rows": 2, "unchanged": 2}
    assert counts(load(state, text.replace("Bob", "Bert"))) == {"rows": 2, "unchanged": 1, "updated": 1}
    assert counts(load(state, "email,age\nann@example.com,7\ncid@example.com,8\n")) == {
        "rows": 2,
        "updated": 1,
        "added": 1,
    }
    assert members(state) == {
        "ann@example.com": {"email": "ann@example.com", "name": "Ann", "town": "Ulm", "age": "7"},
        "bob@example.com": {"email": "bob@example.com", "name": "Bert", "town": "Ulm"},
        "cid@example.com": {"email": "cid@example.com", "age": "8"},
    }
    assert show(state.audience_db, "people").fields == ["email", "name", "town", "age"]


def test_import_never_turns_an_unsubscribed_person_back_on(state: StateDir) -> None:
    """Who left stays away whatever a later file says, and is counted."""
    load(state, "email,name\nann@example.com,Ann\nbob@example.com,Bob\n")
    args = {"list": "people", "address": " ANN@example.com"}
    leave = {"state": state, "now_s": 6.0}
    assert unsubscribe(args, print, lambda: False, **leave)["changed"] is True
    assert unsubscribe(args, print, lambda: False, **leave)["changed"] is False
    assert counts(load(state, "email,name\nann@example.com,New\nbob@example.com,Bob\n")) == {
        "rows": 2,
        "unsubscribed_kept": 1,
        "unchanged": 1,
    }
    assert list(members(state)) == ["bob@example.com"]
    row = show(state.audience_db, "people")
    assert (row.subscribed, row.unsubscribed) == (1, 1)
    with pytest.raises(EcmError) as raised:
        unsubscribe({"list": "people", "address": "nobody@example.com"}, print, lambda: False, **leave)
    assert raised.value.code == "unknown_recipient"


def test_dry_run_says_the_same_and_changes_nothing(state: StateDir) -> None:
    """A dry run has the numbers of the import, makes no list, and still writes the rejected rows."""
    text = "email,name\nann@example.com,Ann\nbad,x\n"
    dry = load(state, text, dry_run=True)
    assert counts(dry) == {"rows": 2, "rejected": 1, "added": 1}
    assert Path(dry["rejects_file"]).exists()
    assert lists(state.audience_db) == []
    assert counts(load(state, text)) == counts(dry)
    changed = text.replace("Ann", "Anna")
    assert counts(load(state, changed, dry_run=True)) == {"rows": 2, "rejected": 1, "updated": 1}
    assert members(state)["ann@example.com"]["name"] == "Ann"


def test_file_with_a_fault_at_its_end_changes_nothing(state: StateDir) -> None:
    """The list is touched only after the whole file was read."""
    path = state.root.parent / "r.csv"
    path.write_bytes(b"email,name\n" + b"ann@example.com,Ann\n" * 50_000 + b"bob@example.com,\xff\n")
    args = {"list": "people", "path": str(path)}
    with pytest.raises(EcmError) as raised:
        import_list(args, lambda _data: None, lambda: False, state=state, now_s=5.0)
    assert (raised.value.code, raised.value.line) == ("not_utf8", 50_002)
    assert lists(state.audience_db) == []


def test_large_import_equals_a_small_one(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are set aside on the disk, in many parts, end up as those kept in memory do; the first row wins."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    people = [(f"user{rng.randrange(900)}@example.com", f"name{number}") for number in range(3_000)]
    expected: dict[str, str] = {}
    for email, name in people:
        expected.setdefault(email, name)
    monkeypatch.setattr(aside.Aside.__init__, "__defaults__", (500,))
    result = load(state, "email,name\n" + "".join(f"{email},{name}\n" for email, name in people))
    assert (result["added"], result["duplicates"]) == (len(expected), 3_000 - len(expected))
    assert {email: fields["name"] for email, fields in members(state).items()} == expected
    assert sorted(path.name for path in state.root.iterdir() if "audience" not in path.name) == []


def test_one_address_in_every_row_is_one_member(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that repeats two addresses for ever makes two members, each of its first row."""
    monkeypatch.setattr(aside.Aside.__init__, "__defaults__", (100,))
    text = "email,name\n" + "".join(f"user{number % 2}@example.com,{number}\n" for number in range(1_001))
    assert counts(load(state, text)) == {"rows": 1_001, "added": 2, "duplicates": 999}
    assert {fields["name"] for fields in members(state).values()} == {"0", "1"}


def test_interrupted_import_is_begun_again(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import cancelled half-way leaves whole batches; the same import again completes it, adding nobody twice."""
    monkeypatch.setattr(aside.Aside.__init__, "__defaults__", (100,))
    monkeypatch.setattr(aside, "BATCH_ROWS", 10)
    path = state.root.parent / "r.csv"
    path.write_text("email,name\n" + "".join(f"user{n}@example.com,{n}\n" for n in range(2_000)))
    calls = 0

    def cancelled() -> bool:
        nonlocal calls
        calls += 1
        return calls > 100

    args = {"list": "people", "path": str(path)}
    with pytest.raises(EcmError, match="cancelled"):
        import_list(args, lambda _data: None, cancelled, state=state, now_s=5.0)
    before = show(state.audience_db, "people").subscribed
    assert 0 < before < 2_000
    assert len(members(state)) == before
    result = import_list(args, lambda _data: None, lambda: False, state=state, now_s=5.0)
    assert counts(result) == {"rows": 2_000, "added": 2_000 - before, "unchanged": before}
    assert len(members(state)) == show(state.audience_db, "people").subscribed == 2_000


def test_objects_with_different_fields_share_a_list(state: StateDir) -> None:
    """NDJSON rows keep their own fields, nested ones too, and merge with what is there."""
    lines = [{"email": "ann@example.com", "tags": [1, {"x": 2}]}, {"email": "bob@example.com", "Name": "Bob"}]
    load(state, "".join(json.dumps(line) + "\n" for line in lines), "r.ndjson")
    load(state, json.dumps({"email": "ann@example.com", "name": None}), "r.ndjson")
    assert members(state) == {
        "ann@example.com": {"email": "ann@example.com", "tags": [1, {"x": 2}], "name": None},
        "bob@example.com": {"email": "bob@example.com", "name": "Bob"},
    }


def test_second_column_called_email_is_refused(state: StateDir) -> None:
    """A list calls the address `email`; another column of that name would be lost, so it is refused."""
    with pytest.raises(EcmError) as raised:
        load(state, "email,work\nx,ann@example.com\n", email_column="work")
    assert raised.value.code == "duplicate_column"


def test_name_of_a_list_is_checked(state: StateDir) -> None:
    """A name must be a line of text one can see."""
    with pytest.raises(EcmError) as raised:
        load(state, "email\nann@example.com\n", list=" \n")
    assert raised.value.code == "invalid_value"
