"""Who a message is from, to and of: addresses on the wire, Message-ID, List-Id, Feedback-ID, boundary.

May not: decide whether an address deserves mail (the loader does); know templates or bodies; read a clock or a file.

Invariants
- The same instance, campaign and recipient key give the same Message-ID, so that a message sent again after a crash
  is recognised as the same one.
- What names a campaign or a sender holds nothing that is unique to a person (Feedback-ID, List-Id, boundary).
- Domains leave as A-labels. An address is bytes beyond ASCII only if its local part is (RFC 6531: SMTPUTF8).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple
from urllib.parse import quote

from actors.message.mime import ComposeError, refuse_breaks

__all__ = ["LINKS", "Address", "Identity", "address", "https_link", "mailto_link"]

_ADDRESS_MAX = 254  # bytes: RFC 5321 4.5.3.1.3 less the angle brackets
_LOCAL_MAX = 64  # bytes: RFC 5321 4.5.3.1.1
_DOMAIN_MAX = 253
_PLAIN = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?"
).fullmatch
_DOMAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9])?").fullmatch
_LITERAL = re.compile(r"\[(?:[0-9.]{7,15}|IPv6:[0-9A-Fa-f:.]{2,45})\]").fullmatch
_QUOTED = re.compile(r'"(?:[ !#-\[\]-~]|\\[ -~])*"').fullmatch
_UNSAFE_IN_LOCAL = re.compile(r'[\s()<>\[\]:;@\\,"\x00-\x1f\x7f-\x9f]').search
_LINK_MAX = 900  # bytes: a URI cannot be folded, and its line must stay within 998
_LINK = re.compile(r"https://[!-.0-;=?-~][!-;=?-~]*").fullmatch  # no space, no angle bracket: it stands in `<...>`
_NOT_IN_LINK = re.compile(r"[\x00-\x1f\x7f]").search
_LINK_SAFE = "!#$%&'()*+,/:;=?@[]~"  # what a URI may hold as it is, the `%` of what is encoded already among it
_NOT_SLUG = re.compile(r"[^a-z0-9]+")
_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?").fullmatch
_SLUG_MAX = 32
_SENDER_MIN, _SENDER_MAX = 5, 15  # Google 6254652
_HASHED = 6  # hex digits that tell apart names which shortening made equal


class Address(NamedTuple):
    """An address as MAIL, RCPT and header fields carry it."""

    wire: bytes
    smtputf8: bool


def address(text: str) -> Address:
    """The wire form of an address. White space around it is dropped; its case is kept.

    Raises ComposeError for what is not one address, or could break out of `<...>` or of a header field.
    """
    text = text.strip()
    if _PLAIN(text) and len(text) <= _ADDRESS_MAX:
        return Address(text.encode(), False)
    local, at, domain = text.rpartition("@")
    if not at or not local:
        raise ComposeError(f"not an address: {_shown(text)}")
    if not _QUOTED(local) and _UNSAFE_IN_LOCAL(local):
        raise ComposeError(f"characters that an address cannot hold: {_shown(text)}")
    if not domain.isascii():
        domain = a_labels(domain)
    elif not _DOMAIN(domain) and not _LITERAL(domain):
        raise ComposeError(f"not a domain: {_shown(domain)}")
    try:
        coded = local.encode()
    except UnicodeEncodeError as error:
        raise ComposeError(f"not Unicode: {_shown(text)}") from error
    wire = coded + b"@" + domain.encode()
    if len(coded) > _LOCAL_MAX or len(domain) > _DOMAIN_MAX or len(wire) > _ADDRESS_MAX:
        raise ComposeError(f"address too long: {_shown(text)}")
    return Address(wire, not local.isascii())


def a_labels(domain: str) -> str:
    """A domain beyond ASCII in its ASCII form (RFC 5890). Raises ComposeError if it has none."""
    import idna

    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        pass  # IDNA 2003 knows labels that 2008 refuses (emoji)
    try:
        coded = domain.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ComposeError(f"not a domain: {_shown(domain)}") from error
    if not _DOMAIN(coded):
        raise ComposeError(f"not a domain: {_shown(domain)}")
    return coded


def https_link(url: str) -> str:
    """A rendered unsubscribe address as a URI (RFC 3986): A-labels, the rest beyond ASCII percent-encoded.

    Raises ComposeError if it is not https (RFC 8058 3.1), too long, or holds line breaks or other control characters.
    """
    if _LINK(url) and len(url) <= _LINK_MAX:
        return url
    url = url.strip()
    refuse_breaks("unsubscribe.url", url)
    scheme, mark, rest = url.partition("://")
    if scheme.lower() != "https" or not mark or _NOT_IN_LINK(url):
        raise ComposeError(f"unsubscribe.url is not an https address: {_shown(url)}")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    host, path = rest[:end], rest[end:]
    if not host.isascii():
        host = a_labels(host)
    url = f"https://{host}{_percent(path)}"
    if not _LINK(url) or len(url) > _LINK_MAX:
        raise ComposeError(f"unsubscribe.url is not an https address of at most {_LINK_MAX} bytes: {_shown(url)}")
    return url


def mailto_link(text: str) -> str:
    """A mailbox, or a mailto URI with or without its scheme, as a mailto URI (RFC 6068).

    Raises ComposeError if its address is none, if it is too long or holds control characters.
    """
    text = text.strip().removeprefix("mailto:")
    mailbox, mark, query = text.partition("?")
    if _NOT_IN_LINK(text):
        raise ComposeError(f"control characters in unsubscribe.mailto: {_shown(text)}")
    uri = f"mailto:{_percent(address(mailbox).wire.decode())}{mark}{_percent(query)}"
    if len(uri) > _LINK_MAX:
        raise ComposeError(f"unsubscribe.mailto is longer than {_LINK_MAX} bytes: {_shown(text)}")
    return uri


# Templates that are unsubscribe links -> what makes a URI of what they print. Templates print the first there is.
LINKS: dict[str, Callable[[str], str]] = {"unsubscribe.url": https_link, "unsubscribe.mailto": mailto_link}


def _percent(text: str) -> str:
    """Percent-encode what a URI cannot hold, leaving what is encoded already."""
    try:
        return quote(text, safe=_LINK_SAFE)
    except UnicodeEncodeError as error:
        raise ComposeError(f"not Unicode: {_shown(text)}") from error


class Identity:
    """The names of one campaign's messages.

    instance   the instance's secret id: without it nobody can foretell a Message-ID or a boundary
    campaign   number within the instance
    name       the campaign's name, any text
    domain     the From domain as A-labels
    kind       marketing or transactional
    """

    def __init__(self, instance: str, campaign: int, name: str, domain: str, kind: str) -> None:
        seed = f"{instance}\0{campaign}".encode()
        self._recipient = blake2b(b"recipient\0" + seed, digest_size=16)
        self._boundary = blake2b(b"boundary\0" + seed, digest_size=16).hexdigest()
        self._campaign = campaign
        slug = _slug(name)
        self.message_id_head = b"<%d." % campaign
        self.message_id_tail = b"@%b>" % domain.encode()
        self.list_id = f"<{slug}.{domain}>".encode()
        self.feedback_id = f"{campaign}:{slug}:{kind}:{_sender_id(domain)}".encode()

    def message_id(self, key: bytes) -> bytes:
        """The Message-ID of one recipient, angle brackets included; `key` is the recipient's key."""
        digest = self._recipient.copy()
        digest.update(key)
        return b"%b%b%b" % (self.message_id_head, digest.hexdigest().encode(), self.message_id_tail)

    def boundary(self, attempt: int = 0) -> bytes:
        """A MIME boundary; the next `attempt` gives another, for a body that holds this one.

        It begins with `=_`, which quoted-printable cannot hold (RFC 2045 6.7), so only 7bit bodies need a look.
        """
        return f"=_{self._boundary}{f'.{attempt}' if attempt else ''}".encode()


def _slug(name: str) -> str:
    """A campaign's name as one label of letters, digits and hyphens; names that differ stay different."""
    if _SLUG(name) and len(name) <= _SLUG_MAX:
        return name
    folded = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = _NOT_SLUG.sub("-", folded)[:_SLUG_MAX].strip("-")
    tail = blake2b(name.encode("utf-8", "replace"), digest_size=_HASHED // 2).hexdigest()
    return f"{slug}-{tail}" if slug else f"campaign-{tail}"


def _sender_id(domain: str) -> str:
    """The SenderId of Feedback-ID: 5 to 15 characters, the same for all mail of a From domain."""
    letters = _NOT_SLUG.sub("", domain.lower())
    if _SENDER_MIN <= len(letters) <= _SENDER_MAX:
        return letters
    tail = blake2b(domain.lower().encode(), digest_size=_HASHED // 2).hexdigest()
    return letters[: _SENDER_MAX - _HASHED] + tail


def _shown(text: str) -> str:
    """Text from outside as an error may show it: one line, short."""
    return repr(text[:80])
