r"""Reads a template as literals and tags, where splitting it is provably the same as rendering it whole.

May not: render or encode anything. A template that could do more than print what its fields hold is refused (None), and
the composer renders it whole.

Invariants
- MARK and SECTION stand in no literal, and nothing that an allowed filter can make holds one that no field held.
- White space control has been carried out on the literals: a piece is what leaves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

__all__ = ["MARK", "SECTION", "Kind", "Piece", "expression", "places", "quoted_names", "scan"]

MARK = "\x1d"  # around what a tag printed
SECTION = "\x1e"  # between the templates of a message

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
_BEFORE_PARENTHESIS = re.compile("and|else|if|in|is|not|or|range").fullmatch
_PIPE = re.compile(r"\s*\|\s*").sub


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


def expression(piece: Piece) -> str:
    """What an output prints, spelt one way: `name` or `name | filter`."""
    return _PIPE("|", piece.text[2:-2].strip(_SPACE))


def places(pieces: Sequence[Piece], known: Mapping[str, int]) -> list[Piece | int]:
    """The pieces, with the place of its value for every output that is `known`: nothing has to be rendered for it.

    known   expression -> place
    Inside a loop a name may be the loop's own, so outputs there are left as they are.
    """
    depth = 0
    found: list[Piece | int] = []
    for piece in pieces:
        if piece.kind is Kind.BLOCK:
            depth += piece.text.startswith("{% for ") - piece.text.startswith("{% endfor")
        place = known.get(expression(piece)) if piece.kind is Kind.OUTPUT and not depth else None
        found.append(piece if place is None else place)
    return found


def quoted_names(pieces: Sequence[Piece]) -> set[str]:
    """The names that are printed percent-encoded: `{{ name | urlencode }}`."""
    outputs = (expression(piece) for piece in pieces if piece.kind is Kind.OUTPUT)
    return {text.removesuffix("|urlencode") for text in outputs if text.endswith("|urlencode")}
