"""Places in TOML text."""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.contract.errors import EcmError
from broker.contract.tomlfile import KeyPath, Places, load_toml, toml_place

TEXT = """\
# a comment = "with" [brackets]
name = "a # b"            # comment
 indented = 1
a.b = 2
"quoted key" = '''x
[not.a.table]
y = 1'''
list = [1, # one
  { in = 3, "k" = [ 4 ] },
]

[relay.default] # the relay
host="h"
rate = { per_second = 5, x.y = 2 }
when = 1979-05-27 07:32:00
[ relay . "a.b" ]
port = 25
[[many]]
v = 1
[[many]]
v = 2
[many.deep]
w = 3
"""


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("name",), (2, 1), (2, 8)),
        (("indented",), (3, 2), (3, 13)),
        (("a",), (4, 1), (4, 1)),
        (("a", "b"), (4, 1), (4, 7)),
        (("quoted key",), (5, 1), (5, 16)),
        (("list", 1, "in"), (9, 5), (9, 10)),
        (("list", 1, "k", 0), (9, 13), (9, 21)),
        (("relay", "default"), (12, 1), (12, 1)),
        (("relay", "default", "host"), (13, 1), (13, 6)),
        (("relay", "default", "rate", "per_second"), (14, 10), (14, 23)),
        (("relay", "default", "rate", "x", "y"), (14, 26), (14, 32)),
        (("relay", "default", "when"), (15, 1), (15, 8)),
        (("relay", "a.b", "port"), (17, 1), (17, 8)),
        (("many", 1, "v"), (21, 1), (21, 5)),
        (("many", 1, "deep", "w"), (23, 1), (23, 5)),
        (("relay", "default", "missing"), (12, 1), (12, 1)),
        (("missing",), (1, 1), (1, 1)),
    ],
)
def test_keys_and_values_have_their_place(path: KeyPath, key: tuple[int, int], value: tuple[int, int]) -> None:
    """Every way of writing a key is found, and what is missing is placed at the table around it."""
    tomllib.loads(TEXT)
    for text in (TEXT, TEXT.replace("\n", "\r\n"), "\ufeff" + TEXT):
        places = Places(text)
        assert (places.key(path), places.value(path)) == (key, value)


def test_a_dotted_name_asks_for_a_key() -> None:
    """The convenience for one question takes names as TOML writes them."""
    assert toml_place(TEXT, "relay.default.host") == (13, 1)
    assert toml_place(TEXT, 'relay."a.b".port') == (17, 1)


KEYS = st.from_regex(r"[a-z_-]{1,3}", fullmatch=True) | st.sampled_from(["a b", "ä", 'q"', "x.y", "#", "[z]"])
VALUES = st.recursive(
    st.integers(-9, 9) | st.booleans() | st.floats(0, 9) | st.text("ab\"'\\\n#[]{},= ", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k, ensure_ascii=False)} = {_inline(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", # ]\n ".join(map(_inline, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _paths(value: Any, path: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    found = [(path, value)] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += _paths(inner, (*path, key))
    return found


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.dictionaries(KEYS, VALUES, max_size=3))
def test_every_value_of_any_document_is_found_where_it_stands(top: dict[str, Any], table: dict[str, Any]) -> None:
    """For random documents, the text at each place reads as the value that the parser found."""
    lines = [f"{json.dumps(key, ensure_ascii=False)} = {_inline(value)}" for key, value in top.items()]
    lines += ["[table.sub]", *(f"{json.dumps(key, ensure_ascii=False)}={_inline(v)}" for key, v in table.items())]
    text = "\n".join(lines)
    places = Places(text)
    document = {**top, "table": {"sub": table}}
    assert tomllib.loads(text) == document
    for path, value in _paths(document):
        if path[0] == "table" and len(path) < 3:
            continue
        line, column = places.value(path)
        rest = "\n".join(text.split("\n")[line - 1 :])[column - 1 :]
        assert rest.startswith(_inline(value)), path


@given(st.text("ab=\"'[]{}.,#\n\\ 1", max_size=40))
@example('"\\1" = 1')
def test_no_text_makes_the_reader_fail_in_another_way(text: str) -> None:
    """Any text is read or refused as invalid TOML with its line; looking for places ends in either case."""
    Places(text)
    with suppress(EcmError):
        load_toml(text, "f.toml")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("name = autumn", "1:8: not valid TOML: invalid value", 'text needs quotes: key = "value"'),
        ("a = 1\na = 2", "2:6: not valid TOML: cannot overwrite a value", "the key stands twice: remove one of them"),
        (
            "[a]\n[b]\n[a]",
            "3:3: not valid TOML: cannot declare [a] twice",
            "the table stands twice: put its keys together",
        ),
        ("a = [1,", "1:8: not valid TOML: invalid value", 'text needs quotes: key = "value"'),
        ("x = " + "[" * 100_000, " arrays or tables nested too deeply", None),
    ],
)
def test_what_is_not_toml_is_named_with_its_place(text: str, message: str, hint: str | None) -> None:
    """The parser's reason, the place and how to mend it."""
    with pytest.raises(EcmError) as caught:
        load_toml(text, "f.toml")
    said = message if hint is None else f"{message}\nhint: {hint}"
    assert caught.value.text() == f"error: f.toml:{said}"


def test_a_number_too_long_to_read_is_invalid_toml() -> None:
    """Python refuses numbers of more than 4,300 digits; that is the file's fault, not ours."""
    with pytest.raises(EcmError):
        load_toml("a = " + "9" * 5000, "f.toml")
