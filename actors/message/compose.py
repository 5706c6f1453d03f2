"""One message for one recipient: fields in, bytes out.

May not: read a clock, a file or a socket; keep anything of one recipient for the next. Hot path: called for every
message, so what does not vary is made once, in the constructor.

Invariants
- Same campaign, fields, key and time: the same bytes.
- Lines end in CRLF, the message too, and no line is longer than 998 bytes. The message is not dot-stuffed.
- What a template prints never leaves its place: no line break in a header value, no MIME boundary in a body.
- Marketing mail says how to unsubscribe; List-Unsubscribe-Post stands there only with an https address (RFC 8058).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from actors.message import mime
from actors.message.identity import LINKS, Address, Identity, address
from actors.message.mime import ComposeError
from actors.message.quick import Quick
from actors.message.render import FUNCTIONS, MissingField, Slot, Templates, has_tags, plain_slashes, sample_contexts
from actors.message.split import picker
from broker.contract.errors import EcmError
from broker.contract.mailbox import parse_mailbox

__all__ = ["ComposeError", "Composer", "Message", "MissingField"]

MESSAGE_BYTES_MAX = 32 * 1024 * 1024  # no relay takes more; a template in a loop must not eat the sender's memory
_TRIALS = 16  # first messages of a composer, made both ways and compared: real fields, beside the made-up ones
_RESERVED = ("email", "unsubscribe_url")  # names that templates always have; they win over columns
_OURS = re.compile(  # what the engine writes itself, or a relay does
    r"(?i:from|to|cc|bcc|sender|reply-to|subject|date|message-id|return-path|received|dkim-signature|feedback-id"
    r"|list-id|list-unsubscribe|list-unsubscribe-post|mime-version|content-.*|resent-.*)"
).fullmatch


class Message(NamedTuple):
    """What goes to a relay.

    mail_from, rcpt_to   the envelope's addresses, without angle brackets
    data                 header and body, CRLF line ends, not dot-stuffed
    smtputf8             an address needs SMTPUTF8 (RFC 6531)
    """

    mail_from: bytes
    rcpt_to: bytes
    data: bytes
    smtputf8: bool


class _Bundle(Protocol):
    """What the composer reads of a bundle (`shm/files/bundle.py`)."""

    @property
    def spec(self) -> Mapping[str, Any]: ...
    @property
    def instance(self) -> str: ...
    @property
    def campaign(self) -> int: ...
    @property
    def email_field(self) -> str: ...


class Composer:
    """Composes the messages of one campaign.

    spec           a campaign as `CampaignSpec.to_map()` gives it
    instance       id of the instance, secret
    campaign       number of the campaign
    email_field    the column that holds the address
    campaign_file  what errors call the campaign file
    names          fields that templates refer to, without `email` and `unsubscribe_url`, which are always there

    Raises EcmError: template_syntax with place, bad_header, invalid_value.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        instance: str,
        campaign: int,
        email_field: str,
        *,
        campaign_file: str | None = None,
    ) -> None:
        self._email_field = email_field
        with _blaming_author("from"):
            self._from = address(spec["from_address"])
        domain = self._from.wire.rpartition(b"@")[2].decode()
        self._identity = Identity(instance, campaign, spec["name"], domain, spec.get("kind") or "marketing")
        slots = {slot.key: slot for slot in _slots(spec)}
        self._templates = Templates(slots.values(), campaign_file)
        self._varying = frozenset(key for key, slot in slots.items() if has_tags(slot.source))
        # In the order of the slots, so that of several faults the same one is always named.
        self._rendered = [key for key in slots if key in self._varying and key not in LINKS]
        self._static = {key: slot.source for key, slot in slots.items() if key not in self._varying}
        for key in LINKS.keys() & self._static.keys():
            with _blaming_author(key):
                self._static[key] = LINKS[key](self._static[key])
        self._bodies = {key: subtype for key, subtype in (("text", "plain"), ("html", "html")) if key in slots}
        self._extra = {f"headers.{name}": name for name in spec.get("headers") or ()}
        self._links = [key for key in LINKS if key in slots]
        self._smtputf8 = self._from.smtputf8
        self._after = self._constant_fields(spec)
        self._opening = None if "from" in self._varying else mime.mailbox("From", self._static["from"], self._from.wire)
        self._dated: tuple[int, bytes] = (-1, b"")
        used = self._templates.names
        self.names = used - FUNCTIONS - frozenset(_RESERVED)
        self._wanted = tuple(sorted(self.names))
        self._names = (*self._wanted, "email")
        self._pick = picker(self._wanted)
        self._overriding = used & FUNCTIONS  # a column of such a name wins over the function
        samples = sample_contexts((*self.names, *_RESERVED))
        self._templates.probe(samples)
        self._trials = _TRIALS
        self._quick = self._make_quick(slots)
        if not all(self._quick is None or self._agrees([*map(row.get, self._names)]) for row in samples):
            self._quick = None

    @classmethod
    def from_bundle(cls, bundle: _Bundle) -> Composer:
        """The composer of a launched campaign."""
        return cls(bundle.spec, bundle.instance, bundle.campaign, bundle.email_field)

    def compose(self, fields: Mapping[str, Any], key: bytes, date_s: int) -> Message:
        """The message for one recipient.

        fields   column -> text
        key      the recipient's key (`shm/address.py`); the Message-ID depends on it
        date_s   engine time, seconds since the epoch

        Raises MissingField, or ComposeError when no lawful message can be made of these fields.
        """
        quick = self._quick
        if quick is None or (self._overriding and not self._overriding.isdisjoint(fields)):
            return self.compose_whole(fields, key, date_s)
        text = fields.get(self._email_field)
        if not isinstance(text, str):
            raise MissingField(self._email_field, "the envelope")
        to = address(text)
        try:
            values = [*self._pick(fields)]
        except KeyError:  # a name that is not a column
            values = [*map(fields.get, self._wanted)]
        values.append(text.strip())
        encoded = quick.encode(values)
        if encoded is None:
            return self.compose_whole(fields, key, date_s)
        if self._trials:
            self._trials -= 1
            if not self._agrees(values):
                self._quick = None
                return self.compose_whole(fields, key, date_s)
        return self._message(to, self._head(to, encoded.texts, key, date_s) + encoded.bodies)

    def compose_whole(self, fields: Mapping[str, Any], key: bytes, date_s: int) -> Message:
        """As `compose`, without the quick way: the yardstick that the quick way is measured and checked against."""
        text = fields.get(self._email_field)
        if not isinstance(text, str):
            raise MissingField(self._email_field, "the envelope")
        to = address(text)
        context, complete = self._context(fields)
        context["email"] = text.strip()
        return self._whole(to, context, complete, key, date_s)

    def check(self, fields: Mapping[str, Any]) -> None:
        """Raise what `compose` would raise for these fields."""
        self.compose_whole(fields, b"", 0)

    @property
    def is_split(self) -> bool:
        """Whether messages go the quick way, as far as is known."""
        return self._quick is not None

    def _context(self, fields: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """The fields as templates see them, and whether all that they use are there."""
        context = {name: _field(fields[name]) for name in self._wanted if fields.get(name) is not None}
        complete = len(context) == len(self._wanted)
        context.update((name, fields[name]) for name in self._overriding if name in fields)
        return context, complete

    def _render_links(self, rendered: dict[str, str], context: dict[str, Any], complete: bool) -> None:
        """Add the unsubscribe links to the texts, and to the fields, because the other templates may print one."""
        for key in self._links:
            if key in self._varying:
                rendered[key] = LINKS[key](self._templates.render(key, context, complete))
        if self._links:
            context["unsubscribe_url"] = rendered[self._links[0]]

    def _render_all(self, context: dict[str, Any], complete: bool) -> dict[str, str]:
        """Every template's text, each rendered by itself."""
        rendered = self._static.copy()
        self._render_links(rendered, context, complete)
        for slot in self._rendered:
            rendered[slot] = self._templates.render(slot, context, complete)
        if "html" in self._varying:
            rendered["html"] = plain_slashes(rendered["html"])
        return rendered

    def _whole(self, to: Address, context: dict[str, Any], complete: bool, key: bytes, date_s: int) -> Message:
        """The message, every template rendered and encoded as a whole."""
        rendered = self._render_all(context, complete)
        parts = [mime.body(_lines(rendered[slot])) for slot in self._bodies]
        attempt = 0
        while len(parts) > 1 and any(self._identity.boundary(attempt) in data for _, data in parts):
            attempt += 1
        pieces = self._head(to, rendered, key, date_s)
        frames = self._frames(self._identity.boundary(attempt))
        for (encoding, data), subtype, (before, after) in zip(parts, self._bodies.values(), frames, strict=True):
            pieces += [before, mime.part_head(subtype, encoding), data, after]
        if not data.endswith(b"\r\n") and not after:
            pieces.append(b"\r\n")
        return self._message(to, pieces)

    def _agrees(self, values: Sequence[Any]) -> bool:
        """Whether both ways make the same texts of these values. Where the quick way steps back, it need not."""
        assert self._quick is not None, "there is nothing to compare"
        quick = self._quick.decoded(values)
        if quick is None:
            return True
        context = {name: value for name, value in zip(self._names, values, strict=True) if value is not None}
        try:
            whole: dict[str, Any] = dict(self._render_all(context, len(context) == len(values)))
        except ComposeError:
            return False
        for key in self._quick.bodies:
            whole[key] = whole[key].replace("\n", "\r\n").encode()
        return quick == whole

    def _make_quick(self, slots: Mapping[str, Slot]) -> Quick | None:
        """The quick way, if every body is open to it and it makes the same of made-up fields."""
        boundary = self._identity.boundary()
        frames = self._frames(boundary)
        bodies = {key: (part, frame) for (key, part), frame in zip(self._bodies.items(), frames, strict=True)}
        quick = Quick(slots, self._static, bodies, boundary, self._templates, self._wanted)
        return quick if quick.open else None

    def _head(self, to: Address, rendered: Mapping[str, str], key: bytes, date_s: int) -> list[bytes]:
        """The header fields up to MIME-Version, in pieces."""
        if self._dated[0] != date_s:
            self._dated = (date_s, b"\r\nDate: %b\r\nMessage-ID: " % mime.date(date_s))
        pieces = [
            self._opening or mime.mailbox("From", rendered["from"], self._from.wire),
            b"\r\nTo: ",
            to.wire,
            b"\r\n",
            mime.unstructured("Subject", rendered["subject"]),
            self._dated[1],
            self._identity.message_id(key),
        ]
        if self._links:
            uris = b">,\r\n <".join([rendered[link].encode() for link in self._links])
            pieces += [b"\r\nList-Unsubscribe: <", uris, b">"]
        for slot, name in self._extra.items():
            if rendered[slot].strip():  # a field whose template has nothing to say for this recipient is left out
                pieces += [b"\r\n", mime.unstructured(name, rendered[slot])]
        pieces.append(self._after)
        return pieces

    def _constant_fields(self, spec: Mapping[str, Any]) -> bytes:
        """The header fields that are the same for everybody, between the line ends before and after them."""
        lines = [b""]
        if spec.get("reply_to"):
            display, reply_to = parse_mailbox(spec["reply_to"]) or ("", spec["reply_to"])
            with _blaming_author("reply_to"):
                wire, smtputf8 = address(reply_to)
                lines.append(mime.mailbox("Reply-To", display, wire))
            self._smtputf8 |= smtputf8
        if "unsubscribe.url" in self._links:
            lines.append(b"List-Unsubscribe-Post: List-Unsubscribe=One-Click")
        if self._links:
            lines.append(b"List-Id: " + self._identity.list_id)
        lines += [b"Feedback-ID: " + self._identity.feedback_id, b"MIME-Version: 1.0", b""]
        return b"\r\n".join(lines)

    def _frames(self, boundary: bytes) -> list[tuple[bytes, bytes]]:
        """What stands before and after each part, from the plainest to the richest."""
        if len(self._bodies) == 1:
            return [(b"", b"")]
        opening = b'Content-Type: multipart/alternative; boundary="%b"\r\n\r\n--%b\r\n' % (boundary, boundary)
        return [(opening, b""), (b"\r\n--%b\r\n" % boundary, b"\r\n--%b--\r\n" % boundary)]

    def _message(self, to: Address, pieces: list[bytes]) -> Message:
        data = b"".join(pieces)
        if len(data) > MESSAGE_BYTES_MAX:
            raise ComposeError(f"message larger than {MESSAGE_BYTES_MAX} bytes: {len(data)}")
        return Message(self._from.wire, to.wire, data, self._smtputf8 or to.smtputf8)


def _slots(spec: Mapping[str, Any]) -> list[Slot]:
    """Everything of a campaign that may hold tags. Bodies get LF line ends and one at the end."""
    headers = [Slot("subject", spec["subject"]), Slot("from", spec.get("from_name") or "")]
    for key in ("unsubscribe_url", "unsubscribe_mailto"):
        if spec.get(key):
            headers.append(Slot(key.replace("_", "."), spec[key].strip()))  # noqa: PERF401  reads better so
    for name, value in (spec.get("headers") or {}).items():
        if not mime.is_header_name(name) or _OURS(name):
            reason = "a header the engine writes itself" if _OURS(name) else "not a header name"
            raise EcmError("bad_header", f"{reason}: `{name}`", field=f"headers.{name}")
        headers.append(Slot(f"headers.{name}", value))
    for slot in headers:
        with _blaming_author(slot.key):
            mime.refuse_breaks(slot.key, slot.source)
    bodies = []
    for key in ("text", "html"):
        if spec.get(key):
            source = _lines(spec[key])
            source += "" if source.endswith("\n") else "\n"
            if key == "html":
                source = plain_slashes(source)
            bodies.append(Slot(key, source, escape=key == "html", file=spec.get(f"{key}_file")))
    return headers + bodies


@contextmanager
def _blaming_author(field: str) -> Iterator[None]:
    """Turn a fault found in what the campaign file says into the author's error, not a recipient's."""
    try:
        yield
    except ComposeError as error:
        raise EcmError("bad_header", str(error), field=field) from None


def _field(value: Any) -> Any:
    """A field as templates see it: text with LF line ends, so that both ways of composing see the same ends."""
    return _lines(value) if isinstance(value, str) else value


def _lines(text: str) -> str:
    """CRLF and lone CR become LF: a bare one in a body is what SMTP smuggling is made of."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
