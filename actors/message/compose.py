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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parseaddr
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from actors.message import mime
from actors.message.identity import Address, Identity, address, https_link, mailto_link
from actors.message.mime import ComposeError
from actors.message.render import FUNCTIONS, MissingField, Slot, Templates, has_tags, sample_contexts
from broker.contract.errors import EcmError

__all__ = ["ComposeError", "Composer", "Message", "MissingField"]

MESSAGE_BYTES_MAX = 32 * 1024 * 1024  # no relay takes more; a template in a loop must not eat the sender's memory
_RESERVED = ("email", "unsubscribe_url")  # names that templates always have; they win over columns
_LINKS: dict[str, Callable[[str], str]] = {"unsubscribe.url": https_link, "unsubscribe.mailto": mailto_link}
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
        slots = _slots(spec)
        self._templates = Templates(slots, campaign_file)
        self._varying = frozenset(slot.key for slot in slots if has_tags(slot.source))
        self._static = {slot.key: slot.source for slot in slots if slot.key not in self._varying}
        for key in _LINKS.keys() & self._static.keys():
            with _blaming_author(key):
                self._static[key] = _LINKS[key](self._static[key])
        self._bodies = [(key, subtype) for key, subtype in (("text", "plain"), ("html", "html")) if spec.get(key)]
        self._extra = list(spec.get("headers") or ())
        self._links = [key for key in _LINKS if any(slot.key == key for slot in slots)]
        self._after = self._constant_fields(spec)
        self._date: tuple[int, bytes] = (0, mime.date(0))
        used = self._templates.names
        self.names = used - FUNCTIONS - frozenset(_RESERVED)
        self._wanted = tuple(sorted(self.names))
        self._pick = _picker(self._wanted)
        self._overriding = used & FUNCTIONS  # a column of such a name wins over the function
        self._templates.probe(sample_contexts((*self.names, *_RESERVED)))

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
        to, context, complete = self._context(fields)
        rendered = self._render_all(context, complete)
        parts = [(subtype, *mime.body(_lines(rendered[slot]))) for slot, subtype in self._bodies]
        head = self._head(to, rendered, key, date_s)
        data = head + self._mime(parts)
        if len(data) > MESSAGE_BYTES_MAX:
            raise ComposeError(f"message larger than {MESSAGE_BYTES_MAX} bytes: {len(data)}")
        return Message(self._from.wire, to.wire, data, self._from.smtputf8 or to.smtputf8)

    def check(self, fields: Mapping[str, Any]) -> None:
        """Raise what `compose` would raise for these fields."""
        self.compose(fields, b"", 0)

    def _context(self, fields: Mapping[str, Any]) -> tuple[Address, dict[str, Any], bool]:
        """The recipient's address, the fields that templates see, and whether every name they use is there."""
        text = fields.get(self._email_field)
        if not isinstance(text, str):
            raise MissingField(self._email_field, "the envelope")
        try:
            values = self._pick(fields)
            plain = "\r" not in "".join(values)
        except (KeyError, TypeError):  # a name that is not a column, or a field that is not text
            plain = False
        if plain:
            context = dict(zip(self._wanted, values, strict=True))
        else:
            context = {name: _field(fields[name]) for name in self._wanted if fields.get(name) is not None}
        context.update((name, fields[name]) for name in self._overriding if name in fields)
        context["email"] = text.strip()
        return address(text), context, plain or context.keys() >= self.names

    def _render_all(self, context: dict[str, Any], complete: bool) -> dict[str, str]:
        """Every slot's text. The unsubscribe address comes first, because the other templates may print it."""
        rendered = dict(self._static)
        for key in self._links:
            if key in self._varying:
                rendered[key] = _LINKS[key](self._templates.render(key, context, complete))
        if self._links:
            context["unsubscribe_url"] = rendered[self._links[0]]
        for key in self._varying - _LINKS.keys():
            rendered[key] = self._templates.render(key, context, complete)
        return rendered

    def _head(self, to: Address, rendered: Mapping[str, str], key: bytes, date_s: int) -> bytes:
        """The header fields up to MIME-Version."""
        if self._date[0] != date_s:
            self._date = (date_s, mime.date(date_s))
        lines = [
            mime.mailbox("From", rendered["from"], self._from.wire),
            b"To: " + to.wire,
            mime.unstructured("Subject", rendered["subject"]),
            b"Date: " + self._date[1],
            b"Message-ID: " + self._identity.message_id(key),
        ]
        if self._links:
            lines.append(b"List-Unsubscribe: " + b",\r\n ".join(b"<%b>" % rendered[k].encode() for k in self._links))
        for name in self._extra:
            value = rendered[f"headers.{name}"]
            if value.strip():  # a field whose template has nothing to say for this recipient is left out
                lines.append(mime.unstructured(name, value))
        lines.append(self._after)
        return b"\r\n".join(lines)

    def _constant_fields(self, spec: Mapping[str, Any]) -> bytes:
        """The header fields that are the same for everybody, with the CRLF after them."""
        lines = []
        if spec.get("reply_to"):
            display, reply_to = parseaddr(spec["reply_to"])
            with _blaming_author("reply_to"):
                lines.append(mime.mailbox("Reply-To", display, address(reply_to).wire))
        if "unsubscribe.url" in self._links:
            lines.append(b"List-Unsubscribe-Post: List-Unsubscribe=One-Click")
        if self._links:
            lines.append(b"List-Id: " + self._identity.list_id)
        lines += [b"Feedback-ID: " + self._identity.feedback_id, b"MIME-Version: 1.0", b""]
        return b"\r\n".join(lines)

    def _mime(self, parts: list[tuple[str, bytes, bytes]]) -> bytes:
        """Content fields and body of (subtype, encoding, bytes) parts, from the plainest to the richest."""
        if len(parts) == 1:
            subtype, encoding, data = parts[0]
            ending = b"" if data.endswith(b"\r\n") else b"\r\n"
            return mime.part_head(subtype, encoding) + data + ending
        attempt = 0
        while any(self._identity.boundary(attempt) in data for _, _, data in parts):
            attempt += 1
        boundary = self._identity.boundary(attempt)
        pieces = [b'Content-Type: multipart/alternative; boundary="%b"\r\n' % boundary]
        pieces += [b"\r\n--%b\r\n%b%b" % (boundary, mime.part_head(s, e), data) for s, e, data in parts]
        return b"%b\r\n--%b--\r\n" % (b"".join(pieces), boundary)


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
            bodies.append(Slot(key, source, escape=key == "html", file=spec.get(f"{key}_file")))
    return headers + bodies


@contextmanager
def _blaming_author(field: str) -> Iterator[None]:
    """Turn a fault found in what the campaign file says into the author's error, not a recipient's."""
    try:
        yield
    except ComposeError as error:
        raise EcmError("bad_header", str(error), field=field) from None


def _picker(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """A function that takes the values of `names` out of a mapping, KeyError if one is not there."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda fields: tuple(fields[name] for name in names)


def _field(value: Any) -> Any:
    """A field as templates see it: text with LF line ends, so that both ways of composing see the same ends."""
    return _lines(value) if isinstance(value, str) else value


def _lines(text: str) -> str:
    """CRLF and lone CR become LF: a bare one in a body is what SMTP smuggling is made of."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
