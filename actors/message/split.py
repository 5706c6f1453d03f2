r"""A body split: what does not vary is encoded once, and a message's values are put into the holes.

May not: know where a value comes from, or render. Hot path: `Body.encode` is called for every message.

A template is literals and tags. A tag that prints a field as it is is a hole for that field; what other tags print is
rendered, from the marked template (`Body.marked`), in which literals and fields stand as short codes, if they must be
told at all, and whatever a tag prints stands between MARKs.

    Dear {{ name }},{% if vip %} again{% endif %} hello {{ city | upper }}    the template
    01{% if vip %}2{% endif %}3<MARK>{{ city | upper }}<MARK>4                the marked template
    Dear <name>=\r\n, again=\r\n hello <value>                                what is sent, quoted-printable

Invariants
- A literal leaves with the bytes that rendering the template whole would decode to, wherever the values around it
  end: in quoted-printable it begins at column 0, behind a soft break.
- Values of up to `room` bytes need no look at the column; longer ones begin on a line of their own.
- No value may hold MARK, SECTION or CR: the caller sees to that.
"""

from __future__ import annotations

from binascii import a2b_qp
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from actors.message.mime import BODY_LINE_MAX, part_head, qp_piece, quoted_printable, seven_bit
from actors.message.scan import MARK, Kind, Piece, places, scan

__all__ = ["PRINTABLE", "Body", "Plan", "picker"]

PRINTABLE = bytes((29, *range(32, 127)))  # MARK, and what needs no thought in 7bit
_MARK = MARK.encode()
_CODES = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # nothing that could begin a tag
_SOFT = b"=\r\n"
_LINE = 75  # columns of quoted-printable before a soft break's `=`
_ROOM_MIN = 32  # columns: a literal that ends with less before column 76 gets a soft break, for names to fit; so does
# one before the last field, which is the unsubscribe link.
_PLANS_BYTES_MAX = 4_000_000  # for all shapes of one body: loops and conditions must not fill a sender's memory
_PLANS_MAX = 1024
_CODED_MARK = b"=1D"  # MARK in quoted-printable


def picker(holes: Sequence[int] | Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """A function that takes the values at `holes` out of a sequence or mapping, as a tuple of any length."""
    if len(holes) > 1:
        return itemgetter(*holes)
    if not holes:
        return lambda values: ()  # noqa: ARG005
    hole = holes[0]
    return lambda values: (values[hole],)


@dataclass(frozen=True, slots=True)
class Plan:
    """The fixed bytes of one shape of a body (which literals, in which order), with holes at odd indices.

    holes        the places of the values for the holes among fields and rendered values, end to end
    pick         takes these
    seven        for 7bit; None if a literal forbids it
    seven_room   a value up to this length leaves every line within BODY_LINE_MAX
    coded        for quoted-printable
    rooms        the bytes that fit behind each fixed piece on its line
    """

    holes: list[int]
    pick: Callable[[Any], tuple[Any, ...]]
    seven: list[bytes] | None
    seven_room: int
    coded: list[bytes]
    rooms: tuple[int, ...]


class Body:
    """One body, split.

    marked   its part of the marked template; "" if nothing of it need be rendered
    """

    def __init__(
        self, pieces: Sequence[Piece | int], subtype: str, before: bytes, after: bytes, boundary: bytes, fields: int
    ) -> None:
        self._heads = {way: before + part_head(subtype, way) for way in (b"7bit", b"quoted-printable")}
        self._after = after
        self._boundary = boundary.decode()
        self._fields = fields
        fixed: list[str | int] = [p if isinstance(p, int) else p.text for p in pieces if _is_fixed(p)]
        self._width = 1
        while len(_CODES) ** self._width < len(fixed):
            self._width += 1
        self._codes = {self._code(i): part for i, part in enumerate(fixed)}
        literals = sum(len(part) for part in fixed if isinstance(part, str))
        self._plans_max = min(_PLANS_MAX, _PLANS_BYTES_MAX // (3 * literals + 1) + 1)
        self._plans: dict[tuple[bytes, ...], Plan] = {}
        codes = iter(self._codes)
        marked = [next(codes) if _is_fixed(piece) else _marked(piece) for piece in pieces]
        self._only: Plan | None = None
        if not any(isinstance(piece, Piece) and piece.kind is Kind.BLOCK for piece in pieces):
            # One shape, which need not be told each time.
            runs = "".join(code if code in self._codes else MARK for code in marked).split(MARK)
            self._only = self._make_plan(tuple(run.encode() for run in runs))
            marked = [code for code in marked if code not in self._codes]
        self.marked = "".join(marked)

    @classmethod
    def of(
        cls,
        source: str,
        subtype: str,
        before: bytes,
        after: bytes,
        boundary: bytes,
        known: Mapping[str, int],
        fields: int,
    ) -> Body | None:
        """The body of a template, or None if it must be rendered whole.

        before, after   what stands around its part in the message
        boundary        must not occur in it
        known           expressions that need no rendering -> their places among the `fields` values
        """
        pieces = scan(source)
        # The last literal holds the last line end: behind a value in its place, white space could end the body.
        if not pieces or pieces[-1].kind is not Kind.LITERAL or boundary.decode() in source:
            return None
        return cls(places(pieces, known), subtype, before, after, boundary, fields)

    def encode(self, section: str, fields: list[bytes], odd: bytes) -> list[bytes] | None:
        """The bytes of the part, in pieces; None: take the whole way.

        section   what the marked template rendered to
        fields    the values of all fields; None for one that is not there
        odd       the bytes of these that are not PRINTABLE

        Raises TypeError if a field is printed that is not there.
        """
        if self.marked:
            data = section.encode()
            if self._boundary in section:  # half of one, completed by the template, would take knowing the secret in it
                return None
            odd += data.translate(None, PRINTABLE)
            parts = data.split(_MARK)
            plan = self.plan(tuple(parts[::2]))
            if plan is None:
                return None
            values = plan.pick(fields + parts[1::2])
        else:
            plan = self.plan(())
            assert plan is not None, "a body with conditions has something to render"
            values = plan.pick(fields)
        if plan.seven is not None and not odd.strip(b"\t\n") and max(map(len, values), default=0) <= plan.seven_room:
            pieces = plan.seven.copy()
            pieces[1::2] = [value.replace(b"\n", b"\r\n") for value in values] if odd else values
        else:
            pieces = plan.coded.copy()
            pieces[1::2] = _coded(values, odd, plan.rooms)
        return pieces

    def decoded(self, data: bytes) -> bytes:
        """What a reader's program makes of the part, CRLF line ends."""
        data = data.removesuffix(self._after)
        if data.startswith(self._heads[b"7bit"]):
            return data.removeprefix(self._heads[b"7bit"])
        return a2b_qp(data.removeprefix(self._heads[b"quoted-printable"]))

    def _code(self, number: int) -> str:
        digits = ""
        for _ in range(self._width):
            number, digit = divmod(number, len(_CODES))
            digits += _CODES[digit]
        return digits

    def plan(self, shape: tuple[bytes, ...]) -> Plan | None:
        """The plan of a shape, made when it is first seen; None for more shapes than are kept.

        shape   what stands between the MARKs of the marked template, rendered
        """
        plan = self._only or self._plans.get(shape)
        if plan is None and len(self._plans) < self._plans_max:
            plan = self._plans[shape] = self._make_plan(shape)
        return plan

    def _laid_out(self, shape: tuple[bytes, ...]) -> tuple[list[str], list[int]]:
        """The texts of a shape, and the holes between them, of which there is one less."""
        texts, holes = [""], []
        for i, run in enumerate(shape):
            if i:
                holes.append(self._fields + i - 1)
                texts.append("")
            for at in range(0, len(run), self._width):
                part = self._codes[run[at : at + self._width].decode()]
                if isinstance(part, str):
                    texts[-1] += part
                else:
                    holes.append(part)
                    texts.append("")
        return texts, holes

    def _make_plan(self, shape: tuple[bytes, ...]) -> Plan:
        texts, holes = self._laid_out(shape)
        lines = MARK.join(texts).split("\n")
        most = max(line.count(MARK) for line in lines)
        seven_room = (BODY_LINE_MAX - max(map(len, lines))) // max(most, 1)
        seven = [seven_bit(text) for text in texts]
        coded, rooms = [], []
        for i, text in enumerate(texts[:-1]):
            piece, column = qp_piece(text.encode())
            room = _LINE - column
            if room < _ROOM_MIN or holes[i] == self._fields - 1:
                piece, room = piece + _SOFT, _LINE
            coded += [_SOFT + piece if i else piece, b""]
            rooms.append(room)
        coded.append((_SOFT if len(texts) > 1 else b"") + quoted_printable(texts[-1]) + self._after)
        coded[0] = self._heads[b"quoted-printable"] + coded[0]
        pick = picker(holes)
        if None in seven or seven_room < 0:
            return Plan(holes, pick, None, 0, coded, tuple(rooms))
        plain = [piece for text in seven for piece in (text or b"", b"")][:-1]
        plain[0] = self._heads[b"7bit"] + plain[0]
        plain[-1] += self._after
        return Plan(holes, pick, plain, seven_room, coded, tuple(rooms))


def _is_fixed(piece: Piece | int) -> bool:
    """Whether a piece stands as a code: a literal or a field."""
    return isinstance(piece, int) or piece.kind is Kind.LITERAL


def _marked(piece: Piece | int) -> str:
    assert isinstance(piece, Piece), "fields stand as codes"
    return f"{MARK}{piece.text}{MARK}" if piece.kind is Kind.OUTPUT else piece.text


def _coded(values: tuple[bytes, ...], odd: bytes, rooms: tuple[int, ...]) -> list[bytes]:
    """Values in quoted-printable, each for a place with `room` bytes on its line, a soft break behind.

    odd   the bytes that are not printable ASCII, of these values and perhaps of others
    """
    joined = _MARK.join(values)
    if b"\n" in odd:  # line ends inside values: the column starts anew, and white space before them matters
        return [_fitted(value, room) for value, room in zip(values, rooms, strict=False)]
    if odd:
        # All in one go. MARK comes out as =1D, which no value can: its `=` becomes =3D. Lines end in soft breaks only,
        # so that a value needs at most one more, before it.
        coded = qp_piece(joined)[0].split(_CODED_MARK)
        return [value if len(value) <= room else _SOFT + value for value, room in zip(coded, rooms, strict=False)]
    short = joined.replace(b"=", b"=3D").split(_MARK) if b"=" in joined else values
    return [
        value if len(value) <= room else _SOFT + value if len(value) <= _LINE else _fitted(whole, room)
        for value, whole, room in zip(short, values, rooms, strict=False)  # of one length, being of one plan
    ]


def _fitted(value: bytes, room: int) -> bytes:
    """One value as in `_coded`, whatever it holds."""
    coded, _ = qp_piece(value)
    first = coded.find(b"\r\n")
    # A value that begins with a line end would leave the literal's white space at the end of a line.
    return _SOFT + coded if first == 0 or (first if first > 0 else len(coded)) > room else coded
