"""The quick way through a campaign's templates: fields go straight to their places, only what must be is rendered.

May not: do for a template what is not provably what rendering it whole does (`scan`); `compose` compares both ways on
made-up rows at launch, and on the first real ones. Hot path: `Quick.encode` is called for every message.

What prints a field as it is, or percent-encoded (`{{ email | urlencode }}`), is not rendered at all. All other tags of
all templates become one marked template, whose one render gives what they print in a message.

Invariants
- Whatever is not plain to see gives None, and the message goes the whole way: fields that hold markers or CR, a field
  that is not there and is printed, errors of any kind (the whole way says which template it was).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from actors.message.at_once import AtOnce, escaped
from actors.message.identity import LINKS
from actors.message.mime import ComposeError
from actors.message.render import Slot, Templates, plain_slashes
from actors.message.scan import MARK, SECTION, Piece, places, quoted_names, scan
from actors.message.split import PRINTABLE, Body, picker

__all__ = ["Encoded", "Quick"]

_SPLIT = "split"  # key of the marked template
_MARK = MARK.encode()
_MARKUP = re.compile(r"[<>&\"']").search
_UNQUOTED = re.compile(r"[A-Za-z0-9_./-]*@?[A-Za-z0-9_./-]*").fullmatch


class Encoded(NamedTuple):
    """What the quick way made of the fields.

    texts    key -> text, of every template but the bodies, and of what is the same for everybody
    bodies   the bytes of the bodies, in pieces
    """

    texts: dict[str, str]
    bodies: list[bytes]


class _Inputs(NamedTuple):
    """What bodies are made from: see `Body.encode`."""

    texts: dict[str, str]
    sections: dict[str, str]
    fields: list[bytes]
    joined: str  # the fields but the link
    data: bytes  # the same, encoded


class _Line:
    """A template of literals and fields alone, as text."""

    def __init__(self, pieces: Sequence[Piece | int]) -> None:
        texts, holes = [""], []
        for piece in pieces:
            if isinstance(piece, int):
                holes.append(piece)
                texts.append("")
            else:
                texts[-1] += piece.text
        self._parts = [part for text in texts for part in (text, "")][:-1]
        self._pick = picker(holes)

    @classmethod
    def of(cls, source: str, known: Mapping[str, int]) -> _Line | None:
        """The line of a template, None if something of it must be rendered."""
        pieces = scan(source)
        found = None if pieces is None else places(pieces, known)
        if found is None or any(isinstance(p, Piece) and p.kind is not p.kind.LITERAL for p in found):
            return None
        return cls(found)

    def fill(self, values: Sequence[Any]) -> str:
        """The text for these values. Raises TypeError if one that it prints is None."""
        parts = self._parts.copy()
        parts[1::2] = self._pick(values)
        return "".join(parts)


class Quick:
    """The quick way of one campaign. `Quick.of` says whether there is one.

    bodies   key -> Body
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        static: Mapping[str, str],
        bodies: Mapping[str, tuple[str, tuple[bytes, bytes]]],
        boundary: bytes,
        templates: Templates,
        names: Sequence[str],
    ) -> None:
        self._static = dict(static)
        self._templates = templates
        self._boundary = boundary.decode()
        self._size = len(names) + 1
        known = {name: i for i, name in enumerate((*names, "email"))}
        quoted = set().union(*(quoted_names(scan(slot.source) or []) for slot in slots.values())) & known.keys()
        self._quoted = [known[name] for name in sorted(quoted)]
        known |= {f"{name}|urlencode": self._size + i for i, name in enumerate(sorted(quoted))}
        varying = [slot for key, slot in slots.items() if key not in static]
        self._links = [(slot.key, _Line.of(slot.source, known)) for slot in varying if slot.key in LINKS]
        self._has_link = next((key for key in LINKS if key in slots), None)
        if self._has_link:
            known["unsubscribe_url"] = self._size + len(self._quoted)
        fields = self._size + len(self._quoted) + 1
        split = {
            key: Body.of(slots[key].source, subtype, *frame, boundary, known, fields)
            for key, (subtype, frame) in bodies.items()
        }
        self.bodies = {key: body for key, body in split.items() if body is not None}
        self.open = len(self.bodies) == len(split)
        self._at_once = AtOnce(self.bodies, fields, self._boundary)
        headers = {slot.key: slot.source for slot in varying if slot.key not in LINKS and slot.key not in bodies}
        lines = {key: _Line.of(source, known) for key, source in headers.items()}
        self._lines = [(key, line) for key, line in lines.items() if line is not None]
        rest = {key: source for key, source in headers.items() if lines[key] is None}
        self._singly = [key for key, source in rest.items() if scan(source) is None]
        plain = {key: source for key, source in rest.items() if key not in self._singly}
        self._mark(plain, names)

    def _mark(self, plain: Mapping[str, str], names: Sequence[str]) -> None:
        """Make the marked template, for HTML mode: what is not HTML stands in a block that does not escape."""
        texts = {**plain, **{key: body.marked for key, body in self.bodies.items() if key != "html" and body.marked}}
        html = {key: body.marked for key, body in self.bodies.items() if key == "html" and body.marked}
        self._keys = (*texts, *html)
        plainly = ["{% autoescape false %}" + SECTION.join(texts.values()) + "{% endautoescape %}"] if texts else []
        source = SECTION.join([*plainly, *html.values()])
        if self._keys and self.open:
            self._templates.add(Slot(_SPLIT, source, escape=True))
        singly = [key for key, line in self._links if line is None] + self._singly
        needed = self._templates.names_of([*singly, *([_SPLIT] if self._keys and self.open else [])])
        self._context = [(name, i) for i, name in enumerate((*names, "email")) if name in needed]

    def encode(self, values: Sequence[str | None]) -> Encoded | None:
        """All texts and bodies of one message; None: take the whole way.

        values   of the names, in their order, and of `email`; None for one that is not there
        """
        try:
            inputs = self._inputs(list(values))
            if inputs is None:
                return None
            pieces = self._at_once.encode(inputs.joined, inputs.fields, inputs.sections) or self._one_by_one(inputs)
        except (ComposeError, TypeError, UnicodeEncodeError):
            return None
        return None if pieces is None else Encoded(inputs.texts, pieces)

    def decoded(self, values: Sequence[str | None]) -> dict[str, Any] | None:
        """What readers' programs make of `encode(values)`: key -> text, of bodies the bytes with CRLF line ends."""
        encoded = self.encode(values)
        if encoded is None:
            return None
        parts = b"".join(encoded.bodies).rsplit(f"\r\n--{self._boundary}\r\n".encode(), len(self.bodies) - 1)
        parts[1:] = [f"\r\n--{self._boundary}\r\n".encode() + part for part in parts[1:]]
        bodies = zip(self.bodies.items(), parts, strict=True)
        return encoded.texts | {key: body.decoded(part) for (key, body), part in bodies}

    def _one_by_one(self, inputs: _Inputs) -> list[bytes] | None:
        """The bodies of a message whose fields need a look."""
        fields = html = inputs.fields
        odd = inputs.data.translate(None, PRINTABLE)
        if _MARKUP(inputs.joined) or fields[-1]:
            html = [field and escaped(field) for field in fields]
        pieces: list[bytes] = []
        for key, body in self.bodies.items():
            part = body.encode(inputs.sections.get(key, ""), html if key == "html" else fields, odd)
            if part is None:
                return None
            pieces += part
        return pieces

    def _inputs(self, values: list[Any]) -> _Inputs | None:
        for i in self._quoted:
            values.append(None if values[i] is None else _quoted(values[i]))
        try:
            joined, gaps = MARK.join(values), False
        except TypeError:
            joined, gaps = MARK.join(["" if value is None else value for value in values]), True
        if SECTION in joined or "\r" in joined or self._boundary in joined:
            return None
        data = joined.encode()
        fields: list[Any] = data.split(_MARK)
        if len(fields) != len(values):
            return None  # a field with a MARK in it
        if gaps:
            fields = [None if value is None else field for value, field in zip(values, fields, strict=True)]
        texts = self._static.copy()
        link = self._add_links(texts, values)
        values.append(link)
        fields.append(link and link.encode())
        sections: dict[str, str] = {}
        if self._keys or self._singly:
            sections = self._render(values, link)
            texts.update(sections)
        for key, line in self._lines:
            texts[key] = line.fill(values)
        return _Inputs(texts, sections, fields, joined, data)

    def _add_links(self, texts: dict[str, str], values: list[Any]) -> str | None:
        """Add the unsubscribe links to the texts; returns the one that templates print as `unsubscribe_url`."""
        for key, line in self._links:
            if line is not None:
                texts[key] = LINKS[key](line.fill(values))
            else:
                texts[key] = LINKS[key](self._templates.render(key, *self._fields(values, None)))
        return texts[self._has_link] if self._has_link else None

    def _fields(self, values: list[Any], link: str | None) -> tuple[dict[str, Any], bool]:
        """The fields that templates render with, and whether all of them are there."""
        context = {name: values[i] for name, i in self._context if values[i] is not None}
        complete = len(context) == len(self._context)
        if link is not None:
            context["unsubscribe_url"] = link
        return context, complete

    def _render(self, values: list[Any], link: str | None) -> dict[str, str]:
        """What must be rendered: key -> text, or section of the marked template. Raises ComposeError."""
        context, complete = self._fields(values, link)
        rendered = {key: self._templates.render(key, context, complete) for key in self._singly}
        if self._keys:
            sections = self._templates.render(_SPLIT, context, complete).split(SECTION)
            if len(sections) != len(self._keys):
                raise ComposeError("a template has printed a mark")
            rendered.update(zip(self._keys, sections, strict=False))
            if "html" in rendered:
                rendered["html"] = plain_slashes(rendered["html"])
        return rendered


def _quoted(text: str) -> str:
    """`{{ text | urlencode }}`."""
    if _UNQUOTED(text):
        return text.replace("@", "%40")
    return quote(text, safe="/").replace("~", "%7E")
