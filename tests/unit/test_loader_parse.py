"""Reading recipients files: encodings, headers, cells, line numbers, NDJSON."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pytest

from actors.loader import source as source_module
from actors.loader.columns import column_name, read_header
from actors.loader.objects import NdjsonFile
from actors.loader.parse import CsvFile, Rejected
from actors.loader.source import Source
from broker.contract.errors import EcmError


def read_csv(path: Path) -> tuple[tuple[str, ...], list[tuple[int, list[str]]], list[Rejected], list[int]]:
    """Header, (line, cells) of every row, rejected rows, lines of rows with a line break inside."""
    with Source(str(path)) as source:
        file = CsvFile(source)
        rows: list[tuple[int, list[str]]] = []
        rejected: list[Rejected] = []
        broken: list[int] = []
        for part in file.rows():
            cells = [[cell.decode() for cell in row] for row in zip(*part.columns, strict=True)]
            rows += zip(part.lines.tolist(), cells, strict=True)
            rejected += part.rejected
            broken += [int(part.lines[index]) for index in part.broken]
    return file.header.names, rows, rejected, broken


def file_of(tmp_path: Path, content: str | bytes, name: str = "recipients.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def error_of(path: Path) -> EcmError:
    with pytest.raises(EcmError) as raised:
        read_csv(path)
    return raised.value


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_found_in_the_header(tmp_path: Path, delimiter: str) -> None:
    """The character that parts the header's cells parts all rows, and a quoted header cell may hold the others."""
    header = delimiter.join(['"Email"', '"Name, or ; or | or\tall"', "Town"])
    path = file_of(tmp_path, f"{header}\na@b.cc{delimiter}Ann{delimiter}Ulm\n")
    names, rows, _, _ = read_csv(path)
    assert names == ("email", "name__or___or___or_all", "town")
    assert rows == [(2, ["a@b.cc", "Ann", "Ulm"])]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_byte_order_mark_leave_no_trace(tmp_path: Path, ending: str, bom: str, last: bool) -> None:
    """Windows, Unix and old Mac line ends, with or without BOM and a last line end, give the same rows."""
    text = bom + ending.join(["email,name", "a@b.cc,Zoë", "c@d.ee,"]) + (ending if last else "")
    names, rows, rejected, _ = read_csv(file_of(tmp_path, text))
    assert names == ("email", "name")
    assert rows == [(2, ["a@b.cc", "Zoë"]), (3, ["c@d.ee", ""])]
    assert rejected == []


def test_quoted_cells_keep_line_breaks_and_rows_their_first_line(tmp_path: Path) -> None:
    """A cell may span lines; its row has the number of its first line, and so have all that follow."""
    text = 'email,name\na@b.cc,"Ann\nof ""Ulm"""\n\nc@d.ee,Bob\n"e@f.gg","x,y"\nh@i.jj,"1\n2\n3"\nk@l.mm,last\n'
    _, rows, rejected, broken = read_csv(file_of(tmp_path, text))
    assert rows == [
        (2, ["a@b.cc", 'Ann\nof "Ulm"']),
        (5, ["c@d.ee", "Bob"]),
        (6, ["e@f.gg", "x,y"]),
        (7, ["h@i.jj", "1\n2\n3"]),
        (10, ["k@l.mm", "last"]),
    ]
    assert rejected == []
    assert broken == [2, 7]


def test_short_and_long_rows_are_rejected_with_their_line(tmp_path: Path) -> None:
    """A row with too few or too many cells is put aside with line, reason and text; blank lines are no rows."""
    _, rows, rejected, _ = read_csv(file_of(tmp_path, 'email,name\nx\na@b.cc,Ann\n\n1,2,3\n"q",2,3\nc@d.ee,\n'))
    assert rows == [(3, ["a@b.cc", "Ann"]), (7, ["c@d.ee", ""])]
    assert [(row.line, row.raw) for row in rejected] == [(2, b"x"), (5, b"1,2,3"), (6, b'"q",2,3')]
    assert rejected[0].reason == "too few cells: 1 where the header has 2"
    assert rejected[1].reason == "too many cells: 3 where the header has 2"


def test_quote_that_never_ends_costs_its_own_row_only(tmp_path: Path) -> None:
    """An opening quote without an end rejects its line; the rows after it are still read."""
    _, rows, rejected, _ = read_csv(file_of(tmp_path, 'email,name\na@b.cc,"Ann\nc@d.ee,Bob\ne@f.gg,Cid\n'))
    assert rows == [(3, ["c@d.ee", "Bob"]), (4, ["e@f.gg", "Cid"])]
    assert [(row.line, row.raw) for row in rejected] == [(2, b'a@b.cc,"Ann')]


def test_quote_inside_a_cell_is_a_plain_character(tmp_path: Path) -> None:
    """A quote that does not open its cell is text, and does not move the boundaries of later rows."""
    text = 'email,name\na@b.cc,5" pipe\nc@d.ee,"two\nlines\nin one"\ne@f.gg,6" pipe\nh@i.jj,x\n'
    _, rows, rejected, _ = read_csv(file_of(tmp_path, text))
    assert rows == [
        (2, ["a@b.cc", '5" pipe']),
        (3, ["c@d.ee", "two\nlines\nin one"]),
        (6, ["e@f.gg", '6" pipe']),
        (7, ["h@i.jj", "x"]),
    ]
    assert rejected == []


def test_any_file_reads_as_the_csv_module_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random files, cut into blocks at random places, give the rows that the csv module alone gives."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    pieces = ["a", "é", "漢", '"', '""', ",", ", ", "\n", " ", "x,y", "'", ""]
    for _ in range(300):
        monkeypatch.setattr(source_module, "BLOCK_BYTES", rng.choice([1 << 6, 1 << 7, 1 << 19]))
        table = [["".join(rng.choices(pieces, k=rng.randrange(4))) for _ in range(3)] for _ in range(rng.randrange(40))]
        text = io.StringIO(newline="")
        text.write("email,b,c\n")
        writer = csv.writer(text, lineterminator="\n", quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        writer.writerows(table)
        _, rows, rejected, _ = read_csv(file_of(tmp_path, text.getvalue()))
        assert [cells for _, cells in rows] == table
        assert rejected == []
        reader = csv.reader(io.StringIO(text.getvalue(), newline=""))
        first = []
        line = 1
        for _ in reader:
            first.append(line)
            line = reader.line_num + 1
        assert [line for line, _ in rows] == first[1:]


def test_mapped_file_reads_as_a_read_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file is mapped, its pages given back on the way, and gives the same rows."""
    lines = [f"user{n}@example.com,{'x' * 100}" for n in range(2_000)]
    path = file_of(tmp_path, "email,pad\n" + "\n".join(lines))
    plain = read_csv(path)
    monkeypatch.setattr(source_module, "MMAP_BYTES", 1)
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 5_000)
    monkeypatch.setattr(source_module, "GIVE_BACK_BYTES", 20_000)
    assert read_csv(path) == plain
    assert len(plain[1]) == 2_000


def test_file_that_shrinks_under_the_reader_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapped file that is cut short while it is read ends in an error, not in a signal."""
    monkeypatch.setattr(source_module, "MMAP_BYTES", 1)
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 4_096)
    path = file_of(tmp_path, "email\n" + "user@example.com\n" * 2_000)
    with Source(str(path)) as source:
        rows = CsvFile(source).rows()
        next(rows)
        with path.open("r+b") as file:
            file.truncate(8_192)
        with pytest.raises(EcmError, match="became shorter"):
            list(rows)


def test_wrong_encodings_are_named_with_their_place(tmp_path: Path) -> None:
    """Latin-1 is told by line and column of its first byte; UTF-16, NUL bytes and archives by their name."""
    latin = error_of(file_of(tmp_path, "email,name\nä@b.cc,x\nc@d.ee,Zoë\n".encode().replace(b"\xc3\xab", b"\xeb")))
    assert (latin.code, latin.line, latin.column, latin.exit) == ("not_utf8", 3, 10, 2)
    assert "0xEB" in latin.message
    assert "ë" in latin.message
    assert "iconv" in str(latin.hint)
    for content in ("email\na@b.cc\n".encode("utf-16"), "email\na@b.cc\n".encode("utf-16-le")):
        wide = error_of(file_of(tmp_path, content))
        assert (wide.code, wide.message) == ("not_utf8", "the file is UTF-16, it must be UTF-8")
    binary = error_of(file_of(tmp_path, b"email,name\na@b.cc,Ann\nc@d\x00.ee,Bob\n"))
    assert (binary.code, binary.line, binary.column) == ("file_binary", 3, 4)
    assert "Excel" in error_of(file_of(tmp_path, b"PK\x03\x04rest of it")).message


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", " \r\n"])
def test_empty_file_is_said_to_be_empty(tmp_path: Path, content: str) -> None:
    """A file of nothing but white space has its own error."""
    assert error_of(file_of(tmp_path, content)).code == "file_empty"


def test_unreadable_paths_have_their_own_errors(tmp_path: Path) -> None:
    """A missing file, a directory, and a path through a file are told apart."""
    assert error_of(tmp_path / "none.csv").code == "file_missing"
    assert error_of(tmp_path).code == "file_unreadable"
    assert error_of(file_of(tmp_path, "email\n") / "below").code == "file_missing"


def test_header_faults_name_what_is_wrong(tmp_path: Path) -> None:
    """No address column, two columns of one name, a missing header: each has its code, place and hint."""
    none = error_of(file_of(tmp_path, "\nname,town\nAnn,Ulm\n"))
    assert (none.code, none.line, none.column) == ("no_address_column", 2, 1)
    assert none.message == "no address column (`email`, `e_mail`, `email_address`)"
    double = error_of(file_of(tmp_path, "email,First Name,first-name\n"))
    assert (double.code, double.field) == ("duplicate_column", "first_name")
    assert error_of(file_of(tmp_path, "ann@example.com,Ann\nbob@example.com,Bob\n")).code == "no_header"


def test_column_names_follow_the_rules() -> None:
    """Names are trimmed and lower-cased, other characters become `_`, and an empty one gets its number."""
    assert [column_name(text) for text in (" First Name ", "E-Mail", "Straße", "a_1")] == [
        "first_name",
        "e_mail",
        "stra_e",
        "a_1",
    ]
    header = read_header("E-Mail,,x\n", "f.csv", 1, None)
    assert (header.names, header.address) == (("e_mail", "column_2", "x"), 0)
    assert read_header("a,Work Mail\n", "f.csv", 1, "work_mail").address == 1
    with pytest.raises(EcmError) as raised:
        read_header("a,work_mail\n", "f.csv", 1, "work_mial")
    assert raised.value.hint == "did you mean `work_mail`?"


def read_ndjson(
    path: Path, email_column: str | None = None
) -> tuple[list[tuple[int, dict[str, object]]], list[Rejected]]:
    with Source(str(path)) as source:
        file = NdjsonFile(source, email_column)
        rows: list[tuple[int, dict[str, object]]] = []
        rejected: list[Rejected] = []
        for part in file.rows():
            rows += zip(part.lines.tolist(), part.rows, strict=True)
            rejected += part.rejected
    return rows, rejected


def test_ndjson_keeps_nested_values_and_names_its_faults(tmp_path: Path) -> None:
    """Each line is an object; what is none is rejected with its line and reason, and nested values are kept."""
    lines = [
        json.dumps({"Email": "a@b.cc", "First Name": "Ann", "tags": ["x", {"y": 1}]}),
        "",
        "{broken",
        "[1]",
        json.dumps({"email": 5}),
        json.dumps({"name": "nobody"}),
        json.dumps({"email": "c@d.ee", "A b": 1, "a-b": 2}),
        '{"email": "e@f.gg", "x": NaN}',
        '{"email": "e@f.gg", "x": "\\ud800"}',
        json.dumps({"email": "h@i.jj", "name": None}),
    ]
    rows, rejected = read_ndjson(file_of(tmp_path, "\n".join(lines), "people.ndjson"))
    assert rows == [
        (1, {"email": "a@b.cc", "first_name": "Ann", "tags": ["x", {"y": 1}]}),
        (10, {"email": "h@i.jj", "name": None}),
    ]
    assert [row.line for row in rejected] == [3, 4, 5, 6, 7, 8, 9]
    assert rejected[0].reason.startswith("not JSON: ")
    assert rejected[2].reason == "`email` is not a text"
    assert rejected[3].reason == "no `email`"


def test_ndjson_without_an_address_field_is_refused(tmp_path: Path) -> None:
    """If the first object has no field of addresses the file is refused, as a CSV file would be."""
    path = file_of(tmp_path, '{"mail": "a@b.cc"}\n', "people.jsonl")
    with pytest.raises(EcmError) as raised:
        read_ndjson(path)
    assert raised.value.code == "no_address_column"
    assert read_ndjson(path, "mail")[0] == [(1, {"mail": "a@b.cc"})]
