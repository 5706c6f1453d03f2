"""What is split, what is not, and that the quick way steps back when it must."""

from __future__ import annotations

import tracemalloc
from urllib.parse import quote

import pytest

from actors.message.scan import MARK, SECTION, Kind, scan
from actors.message.split import Body
from tests.fixtures.messages import DATE_S, KEY, composed, make_composer, parsed, read, row, text_of


@pytest.mark.parametrize(
    "source",
    [
        "{{ name }}",
        "{{ name | upper | default('x', true) }}",
        "{{- name -}} {#- note -#}",
        "{% if a and not (b or c) %}x{% elif d == 'y' %}y{% else %}z{% endif %}",
        "{% for word in name.split(' ') %}{{ loop.index }}. {{ word }}{% endfor %}",
        "{{ 'a }} b' ~ name[0] }}",
        "{% for i in range(3) %}{{ i }}{% endfor %}",
        "{{ price * 2 - 1 }} {{ a if b else c }} {{ x is defined }}",
        "no tags { at } all %}",
    ],
)
def test_plain_templates_are_split(source: str) -> None:
    """Conditions, loops, white space control, filters and methods that only read fields are no obstacle."""
    assert scan(source) is not None


@pytest.mark.parametrize(
    "source",
    [
        "{% set x = 1 %}",
        "{% set x %}captured{% endset %}",
        "{% filter upper %}literal{% endfilter %}",
        "{% macro m() %}literal{% endmacro %}",
        "{% call m() %}{% endcall %}",
        "{% raw %}{{ x }}{% endraw %}",
        "{% include 'x' %}",
        "{% autoescape false %}{% endautoescape %}",
        "{{ '%c' | format(29) }}",
        "{{ x | striptags }}",
        "{{ '\\x1d' }}",
        "{{ {'a': 1}.a }}",
        "{{ namespace() }}",
        "{{ caller() }}",
        "{{ x[0]('y') }}",
        "{{ x.format('y') }}",
        "{{ unended",
        f"a{MARK}b",
        f"a{SECTION}b",
    ],
)
def test_what_is_not_provably_the_same_is_rendered_whole(source: str) -> None:
    """Captures, includes, raw blocks, and whatever could make a marker, are refused."""
    assert scan(source) is None


def test_white_space_control_is_carried_out_on_literals() -> None:
    """A minus in a tag takes the white space of the literal beside it, line ends included, and of no other."""
    pieces = scan("a \n{%- if x -%}\n\t b {{ y -}} \u00a0 c {#- z #} d{% endif %} ")
    assert pieces is not None
    assert [(piece.kind, piece.text) for piece in pieces] == [
        (Kind.LITERAL, "a"),
        (Kind.BLOCK, "{% if x %}"),
        (Kind.LITERAL, "b "),
        (Kind.OUTPUT, "{{ y }}"),
        (Kind.LITERAL, "c"),
        (Kind.LITERAL, " d"),
        (Kind.BLOCK, "{% endif %}"),
        (Kind.LITERAL, " "),
    ]


def test_fields_that_hold_markers_take_the_whole_way() -> None:
    """A field with a marker in it comes out as it went in, and the next recipient goes the quick way again."""
    composer = make_composer(text="<{{ x }}>\n", html="{{ x }}{{ y }}\n")
    for x in (MARK, SECTION, f"{MARK}0{MARK}1", "plain"):
        message = read(composer, x=x, y="y")
        assert text_of(message) == f"<{x}>\n"
        assert text_of(message, "html") == f"{x}y\n"
    assert composer.is_split


def test_a_difference_on_real_fields_closes_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the two ways differ on one of the first recipients, all go the whole way from then on."""
    composer = make_composer(text="Hello {{ first_name }}\n")
    assert composer.is_split
    monkeypatch.setattr(Body, "decoded", lambda *_: b"something else")
    assert text_of(read(composer)) == "Hello Anna\n"
    assert not composer.is_split
    assert composed(composer) == composer.compose_whole(row(), KEY, DATE_S)


def test_more_shapes_than_are_kept_take_the_whole_way() -> None:
    """A loop of ever new lengths fills the plans up to their limit and no further; the messages stay right."""
    composer = make_composer(text="{% for w in words.split(' ') %}Wort für {{ w }}\n{% endfor %}.\n")
    assert composer._quick is not None
    body = composer._quick.bodies["text"]
    body._plans.clear()  # of the made-up rows
    body._plans_max = 3
    for n in range(1, 8):
        words = " ".join("äbcdefg"[:n])
        assert text_of(read(composer, words=words)) == "".join(f"Wort für {w}\n" for w in words.split()) + ".\n"
    assert len(body._plans) <= 3


def test_values_of_any_length_keep_the_lines_of_quoted_printable() -> None:
    """Values that fill a line exactly, by one less or one more, in any encoding, stay within 76 columns."""
    composer = make_composer(text="ä" * 12 + "{{ x }} behind{{ y }}\n", html=None)
    for n in range(30, 160):
        for x in ("x" * n, "=" * (n // 3), "ö" * (n // 6), "x" * n + "\n", "\n" + "x" * n, "x " * (n // 2)):
            message = parsed(composed(composer, x=x, y=x).data)
            assert text_of(message) == "ä" * 12 + f"{x} behind{x}\n"
    assert composer.is_split


@pytest.mark.parametrize(
    "html", ["<p>{{ x }}</p>\n", "<p>Grüße, {{ x }}</p>\n", "{% if y %}<p>{{ y | upper }}</p>{% endif %}\n"]
)
def test_plain_fields_need_no_look_and_others_get_one(html: str) -> None:
    """Short printable fields go at once, and what is not plain still comes out as it went in."""
    composer = make_composer(text="Hello {{ x }}, {{ unsubscribe_url }}\n", html=html)
    assert composer._quick is not None
    for x, at_once in (("Anna", True), ("", True), ("a=b", False), ("Zoë", False), ("<b>", False), ("n" * 500, False)):
        inputs = composer._quick._inputs(
            [{"x": x, "y": "y"}.get(name, "some.text@example.com") for name in composer._names]
        )
        assert inputs is not None
        found = composer._quick._at_once.encode(inputs.joined, inputs.fields, inputs.sections)
        assert (found is not None) == at_once, x
        assert text_of(read(composer, x=x, y="y")).startswith(f"Hello {x}, https://")
        assert composed(composer, x=x, y="y").data.count(b"\r\n") == composed(composer, x=x, y="y").data.count(b"\n")


def test_a_field_that_is_percent_encoded_or_in_a_loop_is_what_rendering_makes_of_it() -> None:
    """`urlencode` is done without rendering, and a loop's own name is not taken for the field of that name."""
    text = "{{ x | urlencode }} {{x|urlencode}} {% for x in y.split(' ') %}{{ x }},{% endfor %} {{ x }}\n"
    composer = make_composer(text=text, html=None)
    for x in ("a b", "a@b.c", "~/_.-", "ü&=%", "plain"):
        quoted = quote(x, safe="/").replace("~", "%7E")
        assert text_of(read(composer, x=x, y="1 2")) == f"{quoted} {quoted} 1,2, {x}\n"
    assert composer.is_split


def test_many_shapes_share_their_literals() -> None:
    """Five conditions in each of two long bodies, a thousand shapes: what is kept of a shape is no copy of the text."""
    conditions = "".join(f"{{% if c{n} %}}x{n}{{% endif %}}" for n in range(5))
    composer = make_composer(text="t" * 900 + f"\n{conditions}\n", html=("<p>h</p>\n" * 4000) + f"{conditions}\n")
    tracemalloc.start()
    try:
        for shape in range(32):
            columns = {f"c{n}": "1" if shape >> n & 1 else "" for n in range(5)}
            assert text_of(read(composer, **columns)).startswith("ttt")
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert composer.is_split
    assert grown < 12_000_000
