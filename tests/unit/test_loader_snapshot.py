"""A snapshot: from a file or a list to shards, ledgers and a bundle, or to one clear error."""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.loader import duplicates, snapshot
from actors.loader.ingest import import_list, unsubscribe
from actors.loader.preview import rate_warnings
from actors.loader.shards import shard_rows
from broker.contract.campaign import parse_campaign
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from broker.store import suppression
from broker.store.store import Store
from shm import address as shm_address
from shm.files import bundle
from shm.files.ledger import Ledger
from shm.files.ledger_states import States
from shm.files.shard import Shard, ShardWriter

INSTANCE = "0123456789abcdef" * 2
NOW_S = 1_800_000_000


class Bench:
    """A state directory and a campaign file, and the jobs on them."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path
        self.state = StateDir(tmp_path / "state")
        self.state.root.mkdir()
        self.told: list[dict[str, Any]] = []
        self.text = "Hello {{ first_name }}\n{{ unsubscribe_url }}\n"
        self.toml: dict[str, str] = {"subject": '"Hello {{ first_name }}"', "text": '"m.txt"'}
        self.url = "https://example.com/u?e={{ email | urlencode }}"
        self.rate = ""
        self.senders = 1

    def write(self, content: str | bytes, name: str = "recipients.csv") -> Path:
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def args(self, recipients: Path | None = None, audience: str | None = None) -> dict[str, Any]:
        lines = ['name = "news"', 'from = "News <news@example.com>"']
        lines += [f"{key} = {value}" for key, value in self.toml.items()]
        lines += ['recipients = "r"' if recipients else f'audience = "{audience}"']
        lines += ["[unsubscribe]", f'url = "{self.url}"', self.rate]
        spec = parse_campaign("\n".join(lines), "campaign.toml", {"m.txt": self.text}).to_map()
        spec["recipients"] = str(recipients) if recipients else None
        return {"campaign": 7, "spec": spec, "relays": [["default", 1]], "retry": {"first_s": 1}} | {
            "sender_count": self.senders,
            "instance": INSTANCE,
        }

    def snapshot(self, recipients: Path | None = None, audience: str | None = None) -> dict[str, Any]:
        args = self.args(recipients, audience)
        return snapshot.snapshot(args, self.told.append, lambda: False, state=self.state, now_s=NOW_S)

    def check(self, recipients: Path | None = None, audience: str | None = None) -> dict[str, Any]:
        args = self.args(recipients, audience)
        return snapshot.check(args, self.told.append, lambda: False, state=self.state, now_s=NOW_S)

    def fails(self, recipients: Path | None = None, audience: str | None = None) -> EcmError:
        with pytest.raises(EcmError) as raised:
            self.snapshot(recipients, audience)
        return raised.value

    def rows(self, result: dict[str, Any]) -> list[tuple[dict[str, Any], States]]:
        """Fields and state of every row of the campaign, in order; asserts that each key is its address's."""
        found = []
        for number, group, count in result["shards"]:
            where = {"instance": INSTANCE, "campaign": 7, "shard": number}
            shard = Shard.open(self.state.shard(7, number), **where)
            ledger = Ledger.open(self.state.ledger(7, number), **where, writable=False)
            assert (shard.rows, shard.group, ledger.rows) == (count, group, count)
            email = bundle.read(self.state.bundle(7), instance=INSTANCE, campaign=7).email_field
            for row in range(count):
                fields = shard.fields(row)
                assert shard.keys[row].tobytes() == shm_address.key(fields[email])
                found.append((fields, States(ledger.a[row] & 15)))
            shard.close()
            ledger.close()
        return found

    def left(self) -> list[str]:
        directory = self.state.campaign(7)
        return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_every_row_is_accounted_for(bench: Bench) -> None:
    """Rejected, repeated, suppressed and pending rows are where they belong, and the numbers add up."""
    store = Store.open(bench.state.store_db)
    entries = [suppression.Entry(shm_address.key(a), a) for a in ("gone@example.com", "other@example.com")]
    suppression.add(store, entries, "manual", "test", 1.0)
    store.close()
    path = bench.write(
        "email,first_name\n"
        "ann@example.com,Ann\n"
        "broken,Bob\n"
        "GONE@example.com,Cid\n"
        "short\n"
        "Ann@Example.com,Again\n"
        '"dora@example.com","Dora, of ""Ulm"""\n'
        "gone@example.com,Twice\n"
    )
    result = bench.snapshot(path)
    counts = {name: result[name] for name in ("rows", "rejected", "duplicates", "suppressed", "audience")}
    assert counts == {"rows": 7, "rejected": 2, "duplicates": 2, "suppressed": 1, "audience": 3}
    assert result["suppressed_position"] == 2
    assert bench.rows(result) == [
        ({"_line": 2, "email": "ann@example.com", "first_name": "Ann"}, States.PENDING),
        ({"_line": 4, "email": "GONE@example.com", "first_name": "Cid"}, States.SUPPRESSED),
        ({"_line": 6, "email": "Ann@Example.com", "first_name": "Again"}, States.DUPLICATE),
        ({"_line": 7, "email": "dora@example.com", "first_name": 'Dora, of "Ulm"'}, States.PENDING),
        ({"_line": 8, "email": "gone@example.com", "first_name": "Twice"}, States.DUPLICATE),
    ]
    with Path(result["rejects_file"]).open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["line", "reason", "row"],
            ["3", "no @ in the address", "broken,Bob"],
            ["5", "too few cells: 1 where the header has 2", "short"],
        ]
    assert "2 rows rejected, the first on line 3: no @ in the address" in result["warnings"]
    assert bench.left() == ["bundle", "rejects.csv", "shard-000001.ledger", "shard-000001.shard"]


def test_bundle_freezes_the_campaign(bench: Bench) -> None:
    """The bundle holds the spec, relays, retry rules, columns and address column that the snapshot was made with."""
    args = bench.args(bench.write("Mail,E-Mail,First Name\nx,ann@example.com,Ann\n"))
    result = snapshot.snapshot(args, bench.told.append, lambda: False, state=bench.state, now_s=NOW_S)
    kept = bundle.read(bench.state.bundle(7), instance=INSTANCE, campaign=7)
    assert (kept.fields, kept.email_field) == (["mail", "e_mail", "first_name"], "e_mail")
    assert (kept.spec, kept.relays, kept.retry) == (args["spec"], [["default", 1]], {"first_s": 1})
    assert (kept.name, kept.created_s, kept.suppressed_position) == ("news", NOW_S, 0)
    assert result["rejects_file"] is None


def test_first_shards_are_small_so_that_all_senders_have_work(bench: Bench) -> None:
    """A small campaign is cut into a shard for each sender and more; a large one grows to full shards."""
    assert [shard_rows(index, 1) for index in (0, 3, 4, 8, 36, 1_000)] == [1_000, 1_000, 2_000, 3_000, 10_000, 10_000]
    bench.senders = 2
    rows = "".join(f"user{number}@example.com,U{number}\n" for number in range(10_500))
    result = bench.snapshot(bench.write("email,first_name\n" + rows))
    assert [count for _, _, count in result["shards"]] == [1_000] * 8 + [2_000, 500]
    found = bench.rows(result)
    assert [fields["_line"] for fields, _ in found] == list(range(2, 10_502))


def test_wide_rows_make_smaller_shards(bench: Bench) -> None:
    """A shard is bounded in bytes too, so that wide rows cost no more memory than narrow ones."""
    rows = "".join(f"user{number}@example.com,{'x' * 60_000}\n" for number in range(300))
    result = bench.snapshot(bench.write("email,first_name\n" + rows))
    assert sum(count for _, _, count in result["shards"]) == 300
    assert all(count < 160 for _, _, count in result["shards"])


def test_many_rows_take_the_way_over_the_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more keys than fit in memory the same rows are duplicates, and no scratch file is left."""
    monkeypatch.setattr(duplicates.DuplicateFinder.__init__, "__defaults__", (100,))
    rows = "".join(f"user{number % 700}@example.com,U{number}\n" for number in range(1_000))
    result = bench.snapshot(bench.write("email,first_name\n" + rows))
    assert (result["duplicates"], result["audience"]) == (300, 700)
    states = [state for _, state in bench.rows(result)]
    assert states == [States.PENDING] * 700 + [States.DUPLICATE] * 300
    assert bench.left() == ["bundle", "shard-000001.ledger", "shard-000001.shard"]


def test_ndjson_rows_become_records_with_nested_values(bench: Bench) -> None:
    """Objects go to shards as they are, numbers and lists too."""
    lines = [{"email": "ann@example.com", "first_name": "Ann", "tags": [1, {"x": None}]}]
    lines += [{"email": "bob@example.com", "first_name": 5}, {"email": "c@example.com", "first_name": 1 << 70}]
    result = bench.snapshot(bench.write("".join(json.dumps(line) + "\n" for line in lines), "people.ndjson"))
    assert [fields for fields, _ in bench.rows(result)] == [
        {"_line": 1, "email": "ann@example.com", "first_name": "Ann", "tags": [1, {"x": None}]},
        {"_line": 2, "email": "bob@example.com", "first_name": 5},
    ]
    assert result["rejected"] == 1


def test_missing_column_is_told_with_count_and_first_line(bench: Bench) -> None:
    """A name that no column has is one error that says how many it concerns, and nothing is left behind."""
    bench.text = "{{ unsubscribe_url }}"
    error = bench.fails(bench.write("email,frist_name\nann@example.com,Ann\nbob@example.com,Bob\n"))
    assert (error.code, error.field, error.count, error.line) == ("missing_field", "first_name", 2, 2)
    assert error.message == "no field `first_name`, which subject uses: 2 recipients"
    assert error.hint == "did you mean `frist_name`?"
    assert str(error.file).endswith("recipients.csv")
    assert bench.left() == []


def test_name_that_is_only_asked_for_may_be_missing(bench: Bench) -> None:
    """A column that templates test and do not print need not exist."""
    bench.text = "{% if nickname %}{{ nickname }}{% endif %} {{ unsubscribe_url }}"
    result = bench.snapshot(bench.write("email,first_name\nann@example.com,Ann\nbob@example.com,Bob\n"))
    assert result["audience"] == 2


def test_only_rows_that_lack_the_name_count(bench: Bench) -> None:
    """Of objects with different fields those are counted that the message cannot be made for."""
    lines = [{"email": f"u{n}@example.com"} | ({"first_name": "x"} if n % 3 else {}) for n in range(9)]
    error = bench.fails(bench.write("".join(json.dumps(line) + "\n" for line in lines), "people.ndjson"))
    assert (error.code, error.field, error.count, error.line) == ("missing_field", "first_name", 3, 1)


def test_line_break_in_a_header_field_is_told_with_its_column(bench: Bench) -> None:
    """A quoted line break in a column that the subject prints is an error naming column, count and line."""
    text = 'email,first_name,note\nann@example.com,Ann,"two\nlines"\nbob@example.com,"B\nob","two\nlines"\n'
    bench.text = "{{ note }} {{ unsubscribe_url }}"
    error = bench.fails(bench.write(text))
    assert (error.code, error.field, error.count, error.line) == ("bad_header", "first_name", 1, 4)
    bench.toml["subject"] = '"Hello"'
    assert bench.snapshot(bench.write(text))["audience"] == 2


def test_unsubscribe_url_must_differ_between_recipients(bench: Bench) -> None:
    """An address that is the same for everybody would unsubscribe the wrong person."""
    bench.url = "https://example.com/u?e={{ town }}"
    path = bench.write("email,first_name,town\na@b.cc,Ann,Ulm\nA@B.CC,Ann,Bonn\nc@d.ee,Bob,Ulm\n")
    error = bench.fails(path)
    assert (error.code, error.field) == ("invalid_value", "unsubscribe.url")
    assert bench.snapshot(bench.write("email,first_name,town\na@b.cc,Ann,Ulm\nc@d.ee,Bob,Bonn\n"))["audience"] == 2


def test_one_impossible_recipient_stops_nobody_else(bench: Bench) -> None:
    """If a message can be made for one of two sample recipients the other is the sender's to fail."""
    bench.url = "https://example.com/u?e={{ email }}&x={{ town }}"
    lines = f"a@b.cc,Ann,{'x' * 2_000}\n"
    assert bench.fails(bench.write("email,first_name,town\n" + lines)).message.startswith("the message cannot be made")
    assert bench.snapshot(bench.write("email,first_name,town\n" + lines + "c@d.ee,Bob,Ulm\n"))["audience"] == 2


def test_template_that_does_not_compile_is_told_before_the_file_is_read(bench: Bench) -> None:
    """A syntax error names the template and its line."""
    bench.text = "one\n{% if %}\n"
    error = bench.fails(bench.write("email,first_name\nann@example.com,Ann\n"))
    assert (error.code, error.file, error.line) == ("template_syntax", "m.txt", 2)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("", "file_empty"),
        ("email,first_name\n", "file_empty"),
        ("name,town\nx,y\n", "no_address_column"),
        ("email,first_name\nnobody,x\n", "no_recipients"),
        (b"email,first_name\na@b.cc,\xff\n", "not_utf8"),
    ],
)
def test_useless_file_is_one_error_and_leaves_nothing(bench: Bench, content: str | bytes, code: str) -> None:
    """Whatever is wrong with the file, the error is the user's (exit 2) and only rejects.csv may stay."""
    error = bench.fails(bench.write(content))
    assert (error.code, error.exit) == (code, 2)
    assert set(bench.left()) <= {"rejects.csv"}


def test_everybody_suppressed_is_nobody_left(bench: Bench) -> None:
    """If all are suppressed there is nobody to mail."""
    store = Store.open(bench.state.store_db)
    suppression.add(store, [suppression.Entry(shm_address.key("a@b.cc"), "a@b.cc")], "manual", "test", 1.0)
    store.close()
    error = bench.fails(bench.write("email,first_name\na@b.cc,Ann\nA@b.cc,Ann\n"))
    assert error.code == "no_recipients"
    assert error.message == "nobody left to mail: of 2 rows 0 rejected, 1 duplicates, 1 suppressed"


def test_cancelled_snapshot_leaves_nothing(bench: Bench) -> None:
    """A snapshot that is told to stop ends with that word and no files."""
    args = bench.args(bench.write("email,first_name\nann@example.com,Ann\n"))
    with pytest.raises(EcmError, match="cancelled"):
        snapshot.snapshot(args, bench.told.append, lambda: True, state=bench.state, now_s=NOW_S)
    assert bench.left() == []


def test_full_disk_is_said_and_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a shard cannot be written the error is disk_full (exit 1) and the directory is cleared."""

    def full(_writer: ShardWriter) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "finish", full)
    error = bench.fails(bench.write("email,first_name\nann@example.com,Ann\n"))
    assert (error.code, error.exit) == ("disk_full", 1)
    assert bench.left() == []


def test_snapshot_begins_from_nothing(bench: Bench) -> None:
    """What an interrupted try left is removed first, its rejects.csv too."""
    bench.state.campaign(7).mkdir(parents=True)
    for name in ("shard-000009.shard", "shard-000001.shard.tmp", "rejects.csv"):
        (bench.state.campaign(7) / name).write_text("old")
    result = bench.snapshot(bench.write("email,first_name\nann@example.com,Ann\n"))
    assert bench.left() == ["bundle", "shard-000001.ledger", "shard-000001.shard"]
    assert result["rejects_file"] is None


def test_check_says_what_a_snapshot_would_and_writes_nothing(bench: Bench) -> None:
    """A check has the snapshot's numbers and errors as an answer, and leaves the state as it was."""
    path = bench.write("email,first_name\nann@example.com,Ann\nann@example.com,Ann\nx,y\n")
    before = sorted(bench.state.root.rglob("*"))
    good = bench.check(path)
    assert (good["ok"], good["errors"]) == (True, [])
    assert (good["rows"], good["rejected"], good["duplicates"], good["audience"]) == (3, 1, 1, 1)
    bad = bench.check(bench.write("email\nann@example.com\n"))
    assert (bad["ok"], [error["code"] for error in bad["errors"]]) == (False, ["missing_field"])
    missing = bench.check(bench.directory / "none.csv")
    assert [error["code"] for error in missing["errors"]] == ["file_missing"]
    assert missing["rows"] is None
    assert sorted(bench.state.root.rglob("*")) == before


def test_warnings_name_what_costs_or_annoys(bench: Bench) -> None:
    """A missing text part, an unsubscribe url nobody sees and a burst below the rate are warned of."""
    path = bench.write("email,first_name\nann@example.com,Ann\nbob@example.com,Bob\n")
    assert bench.check(path)["warnings"] == []
    bench.toml = {"subject": '"Hello"', "html": '"m.txt"'}
    bench.text = "<p>{{ first_name }}</p>"
    bench.rate = "[rate]\nper_second = 1000\nburst = 10"
    warnings = "\n".join(bench.check(path)["warnings"])
    assert "no text part" in warnings
    assert "unsubscribe url is not used" in warnings
    assert "burst = 10 costs rate: 1000 a second needs 50" in warnings
    assert rate_warnings({"per_second": 1000, "burst": 50}) == []
    assert rate_warnings({"per_second": 10, "burst": 1}) == []


def test_progress_tells_phase_bytes_and_rows(bench: Bench) -> None:
    """Each phase is told, with all bytes of the file known from the beginning."""
    path = bench.write("email,first_name\nann@example.com,Ann\n")
    bench.snapshot(path)
    assert [data["phase"] for data in bench.told] == ["reading", "duplicates", "ledgers"]
    assert bench.told[0]["bytes_total"] == path.stat().st_size
    assert set(bench.told[0]) == {"phase", "bytes", "bytes_total", "rows", "per_second", "eta_s"}


def fill_list(bench: Bench, name: str, content: str) -> dict[str, Any]:
    path = bench.write(content, f"{name}.csv")
    never: Callable[[], bool] = lambda: False  # noqa: E731
    args = {"list": name, "path": str(path), "email_column": None, "dry_run": False}
    return import_list(args, bench.told.append, never, state=bench.state, now_s=NOW_S)


def test_list_is_an_audience_like_a_file(bench: Bench) -> None:
    """The subscribed members of a list become records with the address as `email`; who left is not among them."""
    fill_list(bench, "people", "E-Mail,first_name\nann@example.com,Ann\nBob@example.com,Bob\ncid@example.com,Cid\n")
    args = {"list": "people", "address": "CID@example.com"}
    assert unsubscribe(args, bench.told.append, lambda: False, state=bench.state, now_s=NOW_S)["changed"]
    result = bench.snapshot(audience="people")
    records = sorted((fields for fields, _ in bench.rows(result)), key=lambda fields: fields["email"])
    assert [(fields["email"], fields["first_name"]) for fields in records] == [
        ("Bob@example.com", "Bob"),
        ("ann@example.com", "Ann"),
    ]
    assert sorted(fields["_line"] for fields in records) == [1, 2]
    assert (result["rows"], result["audience"]) == (2, 2)
    assert bundle.read(bench.state.bundle(7), instance=INSTANCE, campaign=7).email_field == "email"


def test_members_without_a_field_are_counted(bench: Bench) -> None:
    """People who came with different files lack different fields; exactly those are counted."""
    fill_list(bench, "people", "email,first_name\nann@example.com,Ann\n")
    fill_list(bench, "people", "email,town\nbob@example.com,Ulm\ncid@example.com,Bonn\n")
    error = bench.fails(audience="people")
    assert (error.code, error.field, error.count, error.file) == ("missing_field", "first_name", 2, None)
    bench.toml["subject"] = "\"Hello {{ first_name | default('you') }}\""
    bench.text = "{{ unsubscribe_url }}"
    assert bench.snapshot(audience="people")["audience"] == 3


def test_unknown_or_empty_list_is_an_error(bench: Bench) -> None:
    """A list that does not exist, and one nobody is subscribed to, are told apart."""
    assert bench.fails(audience="nobody").code == "unknown_list"
    assert not bench.state.audience_db.exists()
    fill_list(bench, "people", "email,first_name\nann@example.com,Ann\n")
    unsubscribe({"list": "people", "address": "ann@example.com"}, print, lambda: False, state=bench.state, now_s=NOW_S)
    assert bench.fails(audience="people").code == "no_recipients"
