r"""The quick way to a message: what does not vary is encoded once, and only the tags are rendered.

May not: do for a template what is not provably what rendering it whole does; such a template is refused (None), and
the composer renders it whole. Hot path: `Body.encode` is called for every message.

A template is literals and tags. All of one campaign become one marked template (`Split.source`), in which literals are
left out or stand as short codes, and whatever a tag prints stands between MARKs. One render of it gives the values of
a message; the literals, encoded when the campaign was opened, are put around them.

    Dear {{ name }},{% if vip %} again{% endif %} hello          the template
         <value>    [codes of literals]                          what is rendered
    Dear <value>=\r\n, again hello                               what is sent, quoted-printable

Invariants
- MARK and SECTION stand in no literal, no field and nothing that an allowed filter can make: a template, or a
  message, for which that is not certain goes the whole way.
- A literal leaves with the bytes that the whole way would decode to, wherever the values around it end: in
  quoted-printable it begins at column 0, behind a soft break.
- Values of up to `room` bytes need no look at the column; longer ones begin on a line of their own.
"""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from actors.message.mime import BODY_LINE_MAX, part_head, qp_piece, quoted_printable, seven_bit

__all__ = ["MARK", "SECTION", "Body", "Kind", "Piece", "Split", "scan"]

MARK = "\x1d"  # around what a tag printed
SECTION = "\x1e"  # between the templates of a message
_MARK = MARK.encode()
_CODES = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # nothing that could begin a tag
_SOFT = b"=\r\n"
_LINE = 75  # columns of quoted-printable before a soft break's `=`
_ROOM_MIN = 32  # columns: a literal that ends with less before column 76 gets a soft break, for names to fit
_PLANS_BYTES_MAX = 8_000_000  # for all shapes of one body: loops and conditions must not fill a sender's memory
_PLANS_MAX = 1024
_CODED_MARK = b"=1D"  # MARK in quoted-printable
_PLAIN = bytes((29, *range(32, 127)))  # MARK, and what needs no thought in 7bit

_SPACE = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_START = re.compile(r"\{[{%#]").search
_TAG = re.compile(
    r"""
      \{\{ (?P<out_l>[-+]?) (?P<out> (?: "[^"\\]*" | '[^'\\]*' | [^"'\\{}]  )*? ) (?P<out_r>[-+]?) \}\}
    | \{%  (?P<blk_l>[-+]?) (?P<blk> (?: "[^"\\]*" | '[^'\\]*' | [^"'\\{}%] )*? ) (?P<blk_r>[-+]?) %\}
    | \{\# (?P<com_l>[-+]?) (?P<com> .*?                                        ) (?P<com_r>[-+]?) \#\}
    """,
    re.VERBOSE | re.DOTALL,
).match
_BLOCK = re.compile(
    r"(?:el)?if\s(?P<if>.+) | for\s[\w\s,]+?\sin\s(?P<in>.+) | else | endif | endfor", re.VERBOSE | re.DOTALL
).fullmatch
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"[^"]*"|'[^']*'|\d+(?:\.\d+)?)|(?P<word>[A-Za-z_]\w*)|(?P<sign>[-+*/~<>=!|.,:()\[\]]))"""
).match
# Filters and methods that make no character which neither the template nor a field holds. (`format` makes any from a
# number, `striptags` from an entity.)
_FILTERS = re.compile(
    "abs|bool|capitalize|count|d|default|e|escape|first|float|indent|int|join|last|length|list|lower|max|min|replace"
    "|reverse|round|safe|sort|split|string|sum|title|tojson|trim|truncate|unique|upper|urlencode"
).fullmatch
_METHODS = re.compile(
    "capitalize|cycle|endswith|lower|lstrip|replace|rstrip|split|startswith|strip|title|upper"
).fullmatch
_QUOTABLE = re.compile(r"[!#-&(-\[\]-z|~]+").fullmatch  # fit to be a string in an expression as it stands
_CONDITION = re.compile(r"\sif\s").search
_BEFORE_PARENTHESIS = re.compile("and|else|if|in|is|not|or|range").fullmatch


class Kind(Enum):
    """What a piece of a template is."""

    LITERAL = 1
    OUTPUT = 2
    BLOCK = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """A literal as it is sent, or a tag without its white space control, which was carried out on the literals."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """The fixed bytes of one shape of a body (which literals, in which order), with holes at odd indices.

    seven        for 7bit; None if a literal forbids it
    seven_room   a value up to this length leaves every line within BODY_LINE_MAX
    coded        for quoted-printable
    rooms        the bytes that fit behind each fixed piece on its line
    """

    seven: list[bytes] | None
    seven_room: int
    coded: list[bytes]
    rooms: tuple[int, ...]


def scan(source: str) -> list[Piece] | None:
    """A template as literals and tags; None if it must be rendered whole.

    Rendered whole are: captured blocks, macros, includes, raw blocks, assignments, and every expression that might
    make a character of its own (escapes in strings, filters not listed above).
    """
    if MARK in source or SECTION in source:
        return None
    pieces: list[Piece] = []
    at, trim = 0, False
    while (start := _START(source, at)) is not None:
        tag = _TAG(source, start.start())
        if tag is None or tag.lastgroup is None:
            return None
        name = tag.lastgroup[:3]
        _append_literal(pieces, source[at : start.start()], trim, tag[f"{name}_l"] == "-")
        if name == "out":
            if not _is_safe(tag["out"]):
                return None
            pieces.append(Piece(Kind.OUTPUT, f"{{{{ {tag['out'].strip(_SPACE)} }}}}"))
        elif name == "blk":
            block = _BLOCK(tag["blk"].strip(_SPACE))
            if block is None or not all(_is_safe(block[part] or "") for part in ("if", "in")):
                return None
            pieces.append(Piece(Kind.BLOCK, f"{{% {block[0]} %}}"))
        at, trim = tag.end(), tag[f"{name}_r"] == "-"
    _append_literal(pieces, source[at:], trim, False)
    return pieces


def _append_literal(pieces: list[Piece], text: str, trim_left: bool, trim_right: bool) -> None:
    if trim_left:
        text = text.lstrip(_SPACE)
    if trim_right:
        text = text.rstrip(_SPACE)
    if text:
        pieces.append(Piece(Kind.LITERAL, text))


def _is_safe(expression: str) -> bool:
    """Whether an expression can print only characters that it, or a field, holds."""
    tokens = []
    at, expression = 0, expression.strip(_SPACE)
    while at < len(expression):
        token = _TOKEN(expression, at)
        if token is None:
            return False
        tokens.append((token.lastgroup, token[token.lastgroup or 0]))
        at = token.end()
    before = earlier = ("sign", "")
    for kind, text in tokens:
        if before[1] == "|" and not (kind == "word" and _FILTERS(text)):
            return False
        if text == "(" and kind == "sign" and not _may_be_called(before, earlier[1]):
            return False
        before, earlier = (kind or "sign", text), before
    return True


def _may_be_called(token: tuple[str, str], before: str) -> bool:
    """Whether a parenthesis may follow `token`, which follows `before`."""
    kind, text = token
    if kind != "word":
        return kind == "sign" and text not in (")", "]")
    if before == "|":
        return True  # a filter, and an allowed one
    return (_METHODS if before == "." else _BEFORE_PARENTHESIS)(text) is not None


class Body:
    """One body, split.

    marked   its part of the marked template
    """

    def __init__(self, pieces: Sequence[Piece], subtype: str, before: bytes, after: bytes, boundary: bytes) -> None:
        self._heads = {way: before + part_head(subtype, way) for way in (b"7bit", b"quoted-printable")}
        self._after = after
        self._boundary = boundary.decode()
        self._literals = [piece.text for piece in pieces if piece.kind is Kind.LITERAL]
        self._width = 1
        while len(_CODES) ** self._width < len(self._literals):
            self._width += 1
        self._codes = {self._code(i): text for i, text in enumerate(self._literals)}
        self._plans_max = min(_PLANS_MAX, _PLANS_BYTES_MAX // (3 * sum(map(len, self._literals)) + 1) + 1)
        self._plans: dict[tuple[bytes, ...], _Plan] = {}
        codes = iter(self._codes)
        shown = {Kind.OUTPUT: f"{MARK}%s{MARK}", Kind.BLOCK: "%s"}
        marked = [next(codes) if piece.kind is Kind.LITERAL else shown[piece.kind] % piece.text for piece in pieces]
        self._only: _Plan | None = None
        if not any(piece.kind is Kind.BLOCK for piece in pieces):  # one shape, which need not be told each time
            runs = "".join(code if code in self._codes else MARK for code in marked).split(MARK)
            self._only = self._make_plan(tuple(run.encode() for run in runs))
            marked = [code for code in marked if code not in self._codes]
        self.marked = "".join(marked)

    @classmethod
    def of(cls, source: str, subtype: str, before: bytes, after: bytes, boundary: bytes) -> Body | None:
        """The body of a template, or None if it must be rendered whole.

        before, after   what stands around its part in the message
        boundary        must not occur in it
        """
        pieces = scan(source)
        # The last literal holds the last line end: behind a value in its place, white space could end the body.
        if not pieces or pieces[-1].kind is not Kind.LITERAL or boundary.decode() in source:
            return None
        return cls(pieces, subtype, before, after, boundary)

    def encode(self, section: str) -> list[bytes] | None:
        """The bytes of the part, in pieces, for what the marked template rendered to; None: take the whole way."""
        data = section.encode()
        odd = data.translate(None, _PLAIN)  # what is not printable ASCII: in most messages nothing
        parts = data.split(_MARK)
        plan = self._only or self._plan(tuple(parts[::2]))
        if plan is None:
            return None
        values = parts[1::2]
        if plan.seven is not None and not odd.strip(b"\t\n") and max(map(len, values), default=0) <= plan.seven_room:
            if self._boundary in section:  # half of one, completed by the template, would take knowing the secret in it
                return None
            if odd:
                values = [value.replace(b"\n", b"\r\n") for value in values]
            pieces = plan.seven.copy()
        else:
            values = _coded(data, values, odd, plan.rooms)
            pieces = plan.coded.copy()
        pieces[1::2] = values
        return pieces

    def decoded(self, section: str) -> bytes | None:
        """What a reader's program makes of `encode(section)`, CRLF line ends."""
        pieces = self.encode(section)
        if pieces is None:
            return None
        data = b"".join(pieces).removesuffix(self._after)
        if data.startswith(self._heads[b"7bit"]):
            return data.removeprefix(self._heads[b"7bit"])
        return a2b_qp(data.removeprefix(self._heads[b"quoted-printable"]))

    def _code(self, number: int) -> str:
        digits = ""
        for _ in range(self._width):
            number, digit = divmod(number, len(_CODES))
            digits += _CODES[digit]
        return digits

    def _plan(self, shape: tuple[bytes, ...]) -> _Plan | None:
        """The plan of a shape, made when it is first seen; None for more shapes than are kept."""
        plan = self._plans.get(shape)
        if plan is None and len(self._plans) < self._plans_max:
            plan = self._plans[shape] = self._make_plan(shape)
        return plan

    def _make_plan(self, shape: tuple[bytes, ...]) -> _Plan:
        width = self._width
        runs = [run.decode() for run in shape]
        texts = ["".join(self._codes[run[i : i + width]] for i in range(0, len(run), width)) for run in runs]
        lines = MARK.join(texts).split("\n")
        most = max(line.count(MARK) for line in lines)
        seven_room = (BODY_LINE_MAX - max(map(len, lines))) // max(most, 1)
        seven = [seven_bit(text) for text in texts]
        coded, rooms = [], []
        for i, text in enumerate(texts[:-1]):
            piece, column = qp_piece(text.encode())
            room = _LINE - column
            if room < _ROOM_MIN:
                piece, room = piece + _SOFT, _LINE
            coded += [_SOFT + piece if i else piece, b""]
            rooms.append(room)
        coded.append((_SOFT if len(texts) > 1 else b"") + quoted_printable(texts[-1]) + self._after)
        coded[0] = self._heads[b"quoted-printable"] + coded[0]
        if None in seven or seven_room < 0:
            return _Plan(None, 0, coded, tuple(rooms))
        plain = [piece for text in seven for piece in (text or b"", b"")][:-1]
        plain[0] = self._heads[b"7bit"] + plain[0]
        plain[-1] += self._after
        return _Plan(plain, seven_room, coded, tuple(rooms))


class Split:
    """All templates of a campaign that can be split, as one marked template.

    source   the marked template, for HTML mode: what is not HTML stands in a block that does not escape
    keys     the templates in it, in the order of its sections
    bodies   key -> Body; the sections of other keys are their texts as they are
    url      key of the unsubscribe address if that is one of them: the template then sets `unsubscribe_url` itself

    headers   key -> template
    """

    def __init__(self, headers: Mapping[str, str], bodies: Mapping[str, Body], url: str | None) -> None:
        self.bodies = dict(bodies)
        self.url = None
        plain = {}
        opening = "{% autoescape false %}"
        for key, source in headers.items():
            if key == url:
                expression = _as_expression(source)
                if expression is not None:
                    self.url = key
                    opening = f"{{% set unsubscribe_url = {expression} %}}{opening}"
                    plain[key] = "{{ unsubscribe_url }}"
            elif scan(source) is not None:
                plain[key] = source
        plain |= {key: body.marked for key, body in bodies.items() if key != "html"}
        html = {key: body.marked for key, body in bodies.items() if key == "html"}
        self.keys = (*plain, *html)
        self.source = SECTION.join([opening + SECTION.join(plain.values()) + "{% endautoescape %}", *html.values()])


def _as_expression(source: str) -> str | None:
    """A template of literals and plain outputs as one expression, None for any other."""
    terms = ['""']
    for piece in scan(source) or [Piece(Kind.BLOCK, "")]:
        if piece.kind is Kind.LITERAL and _QUOTABLE(piece.text):
            terms.append(f'"{piece.text}"')
        elif piece.kind is Kind.OUTPUT and not _CONDITION(piece.text):  # one without an else prints, but joins nothing
            terms.append(f"({piece.text[2:-2]})")
        else:
            return None
    return " ~ ".join(terms)


def _coded(data: bytes, values: list[bytes], odd: bytes, rooms: tuple[int, ...]) -> list[bytes]:
    """The values of a section in quoted-printable, each for a place with `room` bytes on its line, a soft break behind.

    data     the section
    values   its values as they are
    odd      the bytes of the section that are not printable ASCII
    """
    if b"\n" in odd:  # line ends inside values: the column starts anew, and white space before them matters
        return [_fitted(value, room) for value, room in zip(values, rooms, strict=False)]
    if odd:
        # All in one go. MARK comes out as =1D, which no value can: its `=` becomes =3D. Lines end in soft breaks only,
        # so that a value needs at most one more, before it.
        coded = qp_piece(data)[0].split(_CODED_MARK)[1::2]
        return [value if len(value) <= room else _SOFT + value for value, room in zip(coded, rooms, strict=False)]
    coded = data.replace(b"=", b"=3D").split(_MARK)[1::2] if b"=" in data else values
    return [
        short if len(short) <= room else _SOFT + short if len(short) <= _LINE else _fitted(value, room)
        for short, value, room in zip(coded, values, rooms, strict=False)  # of one length, being of one plan
    ]


def _fitted(value: bytes, room: int) -> bytes:
    """One value as in `_coded`, whatever it holds."""
    coded, _ = qp_piece(value)
    first = coded.find(b"\r\n")
    # A value that begins with a line end would leave the literal's white space at the end of a line.
    return _SOFT + coded if first == 0 or (first if first > 0 else len(coded)) > room else coded
