"""The quick way of composing against the whole way, over random templates and rows."""

from __future__ import annotations

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from actors.message.compose import ComposeError, Composer, MissingField
from actors.message.scan import MARK, SECTION, Kind, scan
from broker.contract.errors import EcmError
from tests.fixtures.messages import DATE_S, INSTANCE, KEY, make_spec, parsed, row, text_of

NAMES = ("a", "b", "c", "first_name")
HARD = " \t\n.=<>&\"'%#-+_[](),|~é😀\x00\x1b\u2028x1DF"
WORDS = st.sampled_from([
    "", "  ", " \n", "\n\n", "Dear ", " hello", "= ", "=\n", ".\n", "=3D", "=1D", "Grüße ", "\t\n", "<p>", "\u00a0",
    "\x0b", "From x\n", "--=_", '<a href="', "\r\n", "\r", "x" * 74, "x" * 75, "x" * 76, "y" * 1000, "😀" * 20,
    "word " * 30,
])  # fmt: skip
LITERALS = st.one_of(WORDS, st.text(HARD, max_size=12)).filter(lambda text: not any(c in text for c in "{}"))
FILTERS = ("upper", "lower", "trim", "urlencode", "e", "length", "title", "tojson", "default('-', true)")
SHAPES = (
    *("{} ~ ' {{{{ ' ~ {}", "'x' if {} else {}", "{}.strip() | replace('x', '=')", "1 + 2", '"quoted }}}} text"'),
    *("email", "unsubscribe_url", "('a' ~ {}) | safe", "gone | default('none')", "not {}", "{}[0:2]", "[{}, 1]"),
    *("{} | striptags", "'%c' | format(29)", "'\\x1d'", "namespace()", "gone"),
)
CAPTURES = ("set z", "filter upper", "macro m()", "with z = 1", "raw")  # what must be rendered whole
LINKS = (
    *(
        "https://example.com/u?e={{ email | urlencode }}",
        "https://example.com/{{ a }}/{{b|urlencode}}",
        "https://{{ c }}",
    ),
    *("https://example.com/{% if a %}{{ b | urlencode }}{% endif %}", "https://example.com/ü?x={{ a | urlencode }}"),
    *("https://example.com/{{ 'x' if a }}", "https://example.com/{{ '&' | e }}{{ a | urlencode }}"),
)
VALUES = st.one_of(
    WORDS, st.text(HARD, max_size=12), st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(["Anna", "a b c", "7", MARK, SECTION, "\x1d0", "v" * 80, "v " * 600]),
)  # fmt: skip
ROWS = st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES))


@st.composite
def expressions(draw: st.DrawFn) -> str:
    """An expression of the template language; most of them can be split."""
    if draw(st.booleans()):
        return draw(st.sampled_from(NAMES))
    if draw(st.booleans()):
        return f"{draw(st.sampled_from(NAMES))} | {draw(st.sampled_from(FILTERS))}"
    return draw(st.sampled_from(SHAPES)).format(*draw(st.tuples(*[st.sampled_from(NAMES)] * 2)))


@st.composite
def templates(draw: st.DrawFn, depth: int = 2) -> str:
    """A template of the language's every kind of piece, with white space control anywhere."""

    def tag(text: str, brackets: str = "%%") -> str:
        left, right = draw(st.sampled_from(["", "", "-", "+"])), draw(st.sampled_from(["", "", "-", "+"]))
        return f"{{{brackets[0]}{left} {text} {right}{brackets[1]}}}"

    pieces = []
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(
            st.sampled_from(
                ["literal"] * 3 + ["output"] * 3 + ["comment", "if", "for", "capture"][: 1 + 3 * (depth > 0)]
            )
        )
        if kind == "literal":
            pieces.append(draw(LITERALS))
        elif kind == "output":
            pieces.append(tag(draw(expressions()), "{}"))
        elif kind == "comment":
            pieces.append("{#" + draw(st.sampled_from(["", "-"])) + " note #}")
        elif kind == "capture" and draw(st.integers(0, 2)) == 0:
            head = draw(st.sampled_from(CAPTURES))
            pieces += [tag(head), draw(templates(depth=depth - 1)), tag(f"end{head.split()[0]}")]
        elif kind == "for":
            pieces += [
                tag(f"for i in {draw(st.sampled_from(NAMES))}.split(' ')"),
                draw(templates(depth=depth - 1)),
                tag("endfor"),
            ]
        else:
            pieces += [tag(f"if {draw(expressions())}"), draw(templates(depth=depth - 1))]
            if draw(st.booleans()):
                pieces += [tag("else"), draw(templates(depth=depth - 1))]
            pieces.append(tag("endif"))
    return "".join(pieces)


def composer_of(text: str | None, html: str | None, subject: str = "x", url: str = LINKS[0]) -> Composer:
    """A composer whose first messages are not compared by itself."""
    spec = make_spec(subject=subject, text=text, html=html, unsubscribe_url=url)
    try:
        composer = Composer(spec, INSTANCE, 7, "email")
    except EcmError:
        assume(False)
        raise
    composer._trials = 0
    return composer


def outcome(composer: Composer, way: str, fields: dict[str, str]) -> object:
    """What a reader's program makes of the message; or the error."""
    try:
        data = getattr(composer, way)(row(**fields), KEY, DATE_S).data
    except MissingField as error:
        return ("missing", error.name, error.where)
    except ComposeError as error:
        return ("error", str(error))
    message = parsed(data)
    bodies = [text_of(message, part.get_content_subtype()) for part in message.walk() if not part.is_multipart()]
    return data[: data.index(b"\r\nContent-Type")], message.get_content_type(), bodies


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.none() | templates(), templates(), expressions(), st.sampled_from(LINKS), ROWS, ROWS)
def test_quick_way_and_whole_way_make_the_same_message(
    text: str | None, html: str, subject: str, url: str, first: dict[str, str], second: dict[str, str]
) -> None:
    """Head, structure and decoded bodies are the same both ways, or both ways raise the same error."""
    composer = composer_of(text or None, html or "-", f"Hello {{{{ {subject} }}}}", url)
    for fields in (first, second):
        assert outcome(composer, "compose", fields) == outcome(composer, "compose_whole", fields)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(templates())
def test_a_template_that_can_be_split_is_never_found_to_differ(html: str) -> None:
    """What `scan` lets through agrees on every made-up row, so that comparing is a second lock and not the first."""
    html = html or "-"
    source = html.replace("\r\n", "\n").replace("\r", "\n")
    pieces = scan(source if source.endswith("\n") else source + "\n")
    composer = composer_of(None, html)
    assert composer.is_split == bool(pieces and pieces[-1].kind is Kind.LITERAL)
