"""All bodies of a message at once, for a recipient whose fields are short and plain: nearly everybody.

Printable ASCII without `<>&"'=` is itself in plain text, in HTML, in 7bit and in quoted-printable. So its bytes go to
their places without a look at any of them, and all that is fixed in all bodies together is one list of pieces.

May not: do for any value what `Body.encode` would do otherwise; when in doubt it gives None, and that is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from actors.message.scan import MARK
from actors.message.split import PRINTABLE, Body, Plan, picker

__all__ = ["AtOnce", "escaped"]

_MARK = MARK.encode()
_PLAIN = re.compile(r"[\x1d !#-%(-;?-~]*").fullmatch  # printable ASCII but `<>&"'=`, and MARK
_SHAPES_MAX = 1024
_NO_LIMIT = 1 << 30
_LINKS = 4  # forms of the unsubscribe link: as it is, escaped, and both in quoted-printable


class _Shape(NamedTuple):
    """All bodies of one shape of message.

    pick       takes the values for the holes out of fields, forms of the link, nothing, and rendered values, end to end
    pieces     holes at odd indices; the fixed ones are the plans' own, so that a shape costs only their references
    room       bytes that each value but the link may have
    link_room  bytes that the link may have
    coded      some body is quoted-printable
    """

    pick: Callable[[Any], tuple[Any, ...]]
    pieces: list[bytes]
    room: int
    link_room: int
    coded: bool


class AtOnce:
    """The bodies of one campaign.

    count   fields, the unsubscribe link included, which is the last
    """

    def __init__(self, bodies: Mapping[str, Body], count: int, boundary: str) -> None:
        self._bodies = bodies
        self._marked = [key for key, body in bodies.items() if body.marked]
        self._count = count
        self._boundary = boundary
        self._shapes: dict[tuple[tuple[bytes, ...], ...], _Shape] = {}

    def encode(self, joined: str, fields: list[bytes], sections: Mapping[str, str]) -> list[bytes] | None:
        """The bodies, in pieces; None if they want a look.

        joined     the fields but the link, MARKs between them; fields  the same, encoded, and the link (or None)
        sections   what the marked templates rendered to
        """
        if not _PLAIN(joined):
            return None
        *values, link = fields
        longest = max(map(len, values))
        rendered: list[bytes] = []
        shapes = []
        for key in self._marked:
            data = sections[key].encode()
            if data.translate(None, PRINTABLE) or self._boundary in sections[key]:
                return None
            parts = data.split(_MARK)
            shapes.append(tuple(parts[::2]))
            rendered += parts[1::2]
        shape = self._shapes.get(tuple(shapes)) or self._new_shape(shapes)
        if shape is None:
            return None
        if rendered:
            longest = max(longest, *map(len, rendered))
            if shape.coded and any(b"=" in value for value in rendered):
                return None
        if longest > shape.room:
            return None
        links = self._links(link, shape)
        if links is None:
            return None
        pieces = shape.pieces.copy()
        pieces[1::2] = shape.pick([*values, *links, b"", *rendered])
        return pieces

    def _links(self, link: bytes | None, shape: _Shape) -> tuple[bytes | None, ...] | None:
        """The forms of the link; None if it is too long."""
        if link is None:
            return (None,) * _LINKS
        html = escaped(link)
        if not shape.coded:
            return None if len(html) > shape.link_room else (link, html, None, None)
        coded = html.replace(b"=", b"=3D")
        return None if len(coded) > shape.link_room else (link, html, link.replace(b"=", b"=3D"), coded)

    def _new_shape(self, shapes: Sequence[tuple[bytes, ...]]) -> _Shape | None:
        """The shape of a message, when it is first seen; None for more than are kept."""
        if len(self._shapes) >= _SHAPES_MAX:
            return None
        pieces: list[bytes] = []
        holes: list[int] = []
        rooms, link_rooms, coded = [_NO_LIMIT], [_NO_LIMIT], False
        link = self._count - 1
        nothing = link + _LINKS  # stands between two bodies, where no value does
        rendered = nothing + 1
        told = iter(shapes)
        for key, body in self._bodies.items():
            runs = next(told) if body.marked else (b"",)
            plan = body.plan(runs)
            if plan is None:
                return None
            if pieces:
                holes.append(nothing)
                pieces.append(b"")
            form = link + (key == "html") + 2 * (plan.seven is None)
            for hole, room in zip(plan.holes, _rooms(plan), strict=True):
                (link_rooms if hole == link else rooms).append(room)
                holes.append(hole if hole < link else form if hole == link else hole - self._count + rendered)
            pieces += plan.coded if plan.seven is None else plan.seven
            rendered += len(runs) - 1
            coded = coded or plan.seven is None
        shape = _Shape(picker(holes), pieces, min(rooms), min(link_rooms), coded)
        self._shapes[tuple(shapes)] = shape
        return shape


def _rooms(plan: Plan) -> Sequence[int]:
    """The bytes that fit into each hole."""
    return plan.rooms if plan.seven is None else (plan.seven_room,) * len(plan.holes)


def escaped(data: bytes) -> bytes:
    """HTML, escaped as MiniJinja does, but for the slash (`plain_slashes`)."""
    if not data.isalnum():
        for plain, entity in ((b"&", b"&amp;"), (b"<", b"&lt;"), (b">", b"&gt;"), (b'"', b"&quot;"), (b"'", b"&#x27;")):
            data = data.replace(plain, entity)
    return data
