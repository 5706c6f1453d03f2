"""Templates: what they may do, and what is said about those that are wrong."""

from __future__ import annotations

import pytest

from actors.message.compose import ComposeError, MissingField
from actors.message.render import Slot, Templates
from broker.contract.errors import EcmError
from tests.fixtures.messages import composed, make_composer, read, text_of


def rendered(source: str, subtype: str = "plain", **fields: object) -> str:
    """A body template with fields, as the reader of the message sees it."""
    bodies = {"text": source, "html": None} if subtype == "plain" else {"text": None, "html": source}
    return text_of(read(make_composer(**bodies), **fields), subtype)


def test_only_the_html_body_is_escaped() -> None:
    """`<` stays `<` in subject and text and becomes an entity in HTML, unless the template says `safe`."""
    composer = make_composer(subject="{{ x }}", text="{{ x }}\n", html="{{ x }}|{{ x | safe }}\n")
    message = read(composer, x="<b>&'\"")
    assert message["Subject"] == "<b>&'\""
    assert text_of(message) == "<b>&'\"\n"
    assert text_of(message, "html") == "&lt;b&gt;&amp;&#x27;&quot;|<b>&'\"\n"


def test_links_in_html_stay_links() -> None:
    """A link in a field keeps its slashes in HTML; what would end the attribute or the entity is escaped."""
    html = '<a href="{{ link }}">x</a> {{ unsubscribe_url }} {{ x }}\n'
    found = rendered(html, "html", link='https://example.com/a?b=1&c="', x="&#x2f;")
    assert found == (
        '<a href="https://example.com/a?b=1&amp;c=&quot;">x</a> https://example.com/u?e=anna%40example.org &amp;#x2f;\n'
    )
    assert rendered("{{ x }} &#x2f;\n", x="&#x2f;") == "&#x2f; &#x2f;\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if vip %}yes{% else %}no{% endif %}\n", "no\n"),
        ("{{ vip | default('friend') }}\n", "friend\n"),
        ("{{ vip is defined }}\n", "False\n"),
        ("{{ first_name | upper }} {{ first_name | urlencode }}\n", "ANNA B & C ANNA%20b%20%26%20c\n"),
        ("{% for word in first_name.split(' ') %}{{ word }},{% endfor %}\n", "Anna,b,&,c,\n"),
        ("{% set n = first_name %}{{ n }}\n", "Anna b & c\n"),
        ("{% raw %}{{ x }}{% endraw %}{# gone #}\n", "{{ x }}\n"),
        ("a\n  {%- if true -%}  b  {%- endif -%}\n c", "abc\n"),
    ],
)
def test_template_language_is_jinja(source: str, expected: str) -> None:
    """Conditions, defaults, filters, loops, assignments, comments and white space control do what Jinja says."""
    name = "ANNA b & c" if "urlencode" in source else "Anna b & c"
    assert rendered(source, first_name=name) == expected


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("{{ firstname }}", "firstname"),
        ("{{ firstname | upper }}", "firstname"),
        ("{{ firstname | urlencode }}", "firstname"),
        ("{{ firstname | trim | e }}", "firstname"),
        ("{{ firstname | e }}", "firstname"),
        ("{{ firstname | truncate(length=3) }}", "firstname"),
        ("{{ first_name }}{{ first_name.x }}", "first_name.x"),
        ("{% for x in firstname %}{% endfor %}", "firstname"),
        ("{{ 'a' ~ firstname }}", "firstname"),
        ("{{ none_here }}", "none_here"),
    ],
)
def test_a_missing_field_is_never_printed_as_nothing(source: str, name: str) -> None:
    """Printing a field that the recipient lacks names the field and the template, filters or not."""
    composer = make_composer(html=source, html_file="message.html")
    with pytest.raises(MissingField) as caught:
        composed(composer, none_here=None)
    assert (caught.value.name, caught.value.where) == (name, "message.html")


def test_missing_field_in_a_header_names_its_key() -> None:
    """For a template of the campaign file the place is its key there."""
    for changes, where in (
        ({"subject": "{{ x }}"}, "subject"),
        ({"unsubscribe_url": "https://e.com/{{ x | urlencode }}"}, "unsubscribe.url"),
    ):
        with pytest.raises(MissingField) as caught:
            composed(make_composer(**changes))
        assert caught.value.where == where


def test_filters_do_the_same_whether_or_not_some_other_field_is_missing() -> None:
    """One optional field that is absent does not change what filters make of the others."""
    source = "{% if gone %}x{% endif %}{{ a | urlencode }} {{ a | e }} {{ a | truncate(length=4) }} {{ a | tojson }}\n"
    for subtype in ("plain", "html"):
        assert rendered(source, subtype, a="ü <b> & c") == rendered(source, subtype, a="ü <b> & c", gone="")


@pytest.mark.parametrize(
    ("source", "line", "column"),
    [
        ("<p>\n  {{ first_name }\n", 2, 17),
        ("{% if x %}\n\nöö {% endfor %}", 3, 7),
        ("\n\n{{ first_name | nofilter }}", 3, 17),
        ("{{ nofunction() }}", 1, 4),
        ("{% include 'secrets.txt' %}", 1, 4),
        ("{{ first_name | truncate(1, 2, 3, 4, 5, 6) }}", 1, None),
    ],
)
def test_wrong_template_is_told_with_file_line_and_column(source: str, line: int, column: int | None) -> None:
    """A template that cannot work for anybody is the author's error and says where, in one line."""
    with pytest.raises(EcmError) as caught:
        make_composer(html=source, html_file="mail/message.html")
    error = caught.value
    assert (error.code, error.file, error.line) == ("template_syntax", "mail/message.html", line)
    assert column is None or error.column == column
    assert "\n" not in error.message
    assert error.text().count("\n") == 1


def test_wrong_template_in_the_campaign_file_names_its_key() -> None:
    """A subject has no line of its own: the error names the campaign file and the key."""
    with pytest.raises(EcmError) as caught:
        make_composer(subject="{{ first_name")
    error = caught.value
    assert (error.code, error.file, error.field) == ("template_syntax", "campaign.toml", "subject")
    assert error.message.startswith("subject: ")


def test_template_that_never_ends_is_stopped() -> None:
    """Loops in loops run out of fuel instead of holding a sender."""
    loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ComposeError, match="runs too long"):
        composed(make_composer(text=loops))


def test_names_are_what_the_audience_must_have() -> None:
    """`names` lists the fields of all templates, without those that are always there."""
    composer = make_composer(
        subject="{{ a }}",
        from_name="{{ b }}",
        text="{% for x in c %}{{ x }}{{ loop.index }}{% endfor %}{{ email }}",
        html="{% if d %}{{ unsubscribe_url }}{{ range(3) }}{% endif %}",
        unsubscribe_url="https://example.com/{{ e }}",
        headers={"X-F": "{{ f }}"},
    )
    assert composer.names == frozenset("abcdef")


def test_a_column_named_like_a_function_is_a_column() -> None:
    """A column `range` prints; a column `joiner` needs no function to give way; no name is taken by the engine."""
    names = ("self", "name", "template_name", "context", "_line")
    source = " ".join(f"{{{{ {name} }}}}" for name in names)
    assert rendered(f"{source}\n", **{name: f"<{name}>" for name in names}) == " ".join(f"<{n}>" for n in names) + "\n"
    assert rendered("{{ range }} {{ joiner }}\n", range="5 km", joiner="Eva") == "5 km Eva\n"


def test_names_in_slices_are_seen() -> None:
    """A field that is only ever sliced is a field all the same; a loop's own name is none."""
    source = "{{ first_name[:1] }} {{ a[b:c] }} {% for w in words[0:2] %}{{ w[1:] }}{% endfor %} [x:y]"
    assert Templates([Slot("text", source)]).names == {"first_name", "a", "b", "c", "words"}
