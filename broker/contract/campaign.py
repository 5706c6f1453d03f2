"""The campaign file: what a campaign is, checked before anything is prepared.

May import pydantic; reads no file (templates come in as text) and knows no relay, no audience and no template
language. The description of each field is what its error message says, so it stands once.

Invariants
- What `parse_campaign` returns has exactly one audience, at least one body, one sender and, unless it is
  transactional, a way to unsubscribe.
- No header value holds a line break, so no campaign file can add a header of its own.
- A `CampaignSpec` is frozen and holds everything: changing a template later changes no campaign.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator

from broker.contract.errors import EcmError
from broker.contract.limits import OptionalSeconds, Rate, Share, Weight
from broker.contract.mailbox import control_character, is_address, parse_mailbox
from broker.contract.problems import Problem, Table, explain, in_file_order, wrong
from broker.contract.tomlfile import Places, load_toml

__all__ = ["Breaker", "CampaignSpec", "parse_campaign", "parse_campaign_all"]

NAME_CHARACTERS_MAX = 100
HEADER_CHARACTERS_MAX = 2000

_UNSUBSCRIBE_HINT = (
    'add [unsubscribe] with mailto = "unsubscribe@example.com" or '
    'url = "https://example.com/u?e={{ email | urlencode }}", or set kind = "transactional"'
)
_URL_HINT = 'write url = "https://example.com/u?e={{ email | urlencode }}"'

# Headers the engine writes itself, or that only a server on the way may write.
_OWN_HEADERS = frozenset(
    (
        *("from", "sender", "to", "cc", "bcc", "subject", "date", "reply-to", "message-id", "mime-version"),
        *("return-path", "received", "list-id", "feedback-id"),
    )
)
_OWN_PREFIXES = ("content-", "list-unsubscribe", "dkim-", "arc-", "resent-", "received-", "authentication-")
_HEADER_NAME = re.compile(r"[!-9;-~]{1,70}")  # RFC 5322 2.2: printable US-ASCII but the colon


def _one_line(text: str) -> str:
    character = control_character(text)
    if character in ("\r", "\n"):
        raise wrong(
            "holds a line break, which would start another header", hint="write it on one line", code="bad_header"
        )
    if character is not None:
        raise wrong(f"holds a control character: U+{ord(character):04X}", hint="remove it", code="bad_header")
    if len(text) > HEADER_CHARACTERS_MAX:
        raise wrong(f"is longer than {HEADER_CHARACTERS_MAX} characters: {len(text)}", code="bad_header")
    return text


class Breaker(Table):
    """Shares of attempts that pause the campaign, 0 = off; judged after `after` attempts."""

    bounced: Share = 0.10
    deferred: Share = 0.50
    sender_fault: Share = 0.05
    after: Annotated[int, Field(ge=1, le=10**9, description="a whole number of attempts from 1")] = 1000


class _Common(Table):
    """What the file and the specification say in the same words."""

    name: Annotated[str, Field(description="text", examples=["autumn-news"])]
    subject: Annotated[str, Field(description="text", examples=["Hello {{ first_name }}"])]
    recipients: Annotated[str | None, Field(description="the path of a file")] = None
    audience: Annotated[str | None, Field(description="the name of a list")] = None
    email_column: Annotated[str | None, Field(description="the name of a column")] = None
    relay: Annotated[str, Field(description="the name of a relay or pool")] = "default"
    kind: Annotated[Literal["marketing", "transactional"], Field(description='one of "marketing", "transactional"')] = (
        "marketing"
    )
    uncertain: Annotated[Literal["resend", "hold"], Field(description='one of "resend", "hold"')] = "resend"
    give_up_s: OptionalSeconds = None
    weight: Weight = 1
    priority: Annotated[int, Field(ge=-1000, le=1000, description="a whole number from -1000 to 1000")] = 0
    rate: Annotated[Rate, Field(description="a table")] = Field(default_factory=Rate.campaign_default)
    breaker: Annotated[Breaker, Field(description="a table")] = Breaker()
    headers: Annotated[
        dict[str, Annotated[str, Field(description="text")]], Field(description="a table: name = value")
    ] = Field(default_factory=dict)
    reply_to: Annotated[str, Field(description="an address")] = ""

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if name.isdigit():
            raise wrong("is all digits, which would be a campaign's id", hint=f'put a letter in it: "news-{name}"')
        if re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_CHARACTERS_MAX - 1}}}", name):
            return name
        plain = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-._")[:NAME_CHARACTERS_MAX]
        raise wrong(
            f"must be letters, digits, `.`, `_` and `-`, at most {NAME_CHARACTERS_MAX}, a letter or digit first",
            hint=f'for example name = "{plain}"' if plain else None,
        )

    @field_validator("subject")
    @classmethod
    def _subject(cls, subject: str) -> str:
        if not subject.strip():
            raise wrong("is empty", hint='write subject = "Hello {{ first_name }}"')
        return _one_line(subject)

    @field_validator("reply_to")
    @classmethod
    def _reply_to(cls, text: str) -> str:
        if text and parse_mailbox(_one_line(text)) is None:
            raise wrong(f'must be one address: `"{text}"`', hint='for example "News <news@example.com>"')
        return text

    @field_validator("recipients", "audience", "email_column", "relay")
    @classmethod
    def _not_empty(cls, text: str | None) -> str | None:
        if text is not None and (not text.strip() or control_character(text)):
            raise wrong("is empty or holds a control character")
        return text


class CampaignSpec(_Common):
    """A campaign, complete.

    from_name, from_address   of the From header; the name may hold template tags
    html, text                templates, None = no such part;  html_file, text_file  their paths as written
    recipients                path of the audience's file, absolute once `ctl` or `with_recipients` set it
    audience                  or the name of a list
    unsubscribe_mailto        an address, perhaps with ?subject=...;  unsubscribe_url  a template
    give_up_s                 None = what [retry] says
    weight                    share among campaigns of one priority;  priority  higher ones first
    headers                   further headers, name -> value, as written
    """

    from_name: str = ""
    from_address: str
    html: str | None = None
    text: str | None = None
    html_file: str | None = None
    text_file: str | None = None
    unsubscribe_mailto: str | None = None
    unsubscribe_url: str | None = None

    def with_recipients(self, path: str) -> Self:
        """The same campaign for another file of recipients."""
        return self.model_copy(update={"recipients": path, "audience": None})


class _Unsubscribe(Table):
    mailto: Annotated[str | None, Field(description="an address")] = None
    url: Annotated[str | None, Field(description="text")] = None

    @field_validator("mailto")
    @classmethod
    def _mailto(cls, text: str | None) -> str | None:
        if text is None:
            return None
        bare = _one_line(text).strip().removeprefix("mailto:")
        address, _, parameters = bare.partition("?")
        if not is_address(address) or re.search(r'[\s<>"]', parameters):
            raise wrong(f'must be an address: `"{text}"`', hint='for example "unsubscribe@example.com"')
        return bare

    @field_validator("url")
    @classmethod
    def _url(cls, text: str | None) -> str | None:
        if text is None:
            return None
        url = _one_line(text).strip()
        if not re.match(r"https://[^\s/?#<>]", url):
            raise wrong(f'must begin with https:// and a host (RFC 8058): `"{url}"`', hint=_URL_HINT)
        if "{{" not in url:
            raise wrong(f'is the same for every recipient: `"{url}"`', hint=_URL_HINT)
        if re.search(r'[\s<>"]', re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", url)):
            raise wrong(f'holds a space, `<`, `>` or a quote outside of tags: `"{url}"`', hint=_URL_HINT)
        return url


class _CampaignFile(_Common):
    """The file as people write it."""

    model_config = ConfigDict(validate_by_name=False)

    from_: Annotated[str, Field(validation_alias="from", description="text", examples=["News <news@example.com>"])]
    html: Annotated[str | None, Field(description="the path of a file")] = None
    text: Annotated[str | None, Field(description="the path of a file")] = None
    unsubscribe: Annotated[_Unsubscribe, Field(description="a table")] = _Unsubscribe()

    @field_validator("from_")
    @classmethod
    def _from(cls, text: str) -> str:
        if parse_mailbox(_one_line(text)) is None:
            raise wrong(f'must be one address: `"{text}"`', hint='for example "News <news@example.com>"')
        return text

    @field_validator("rate", mode="before")
    @classmethod
    def _rate(cls, table: Any) -> Any:
        return Rate.completed(table) if isinstance(table, dict) else table


def parse_campaign(text: str, file: str, attached: Mapping[str, str], recipients: str | None = None) -> CampaignSpec:
    """The campaign that the text of a campaign file means.

    file        names the text in errors
    attached    content of the html and text files by their path as the text writes it
    recipients  a file that takes the place of the audience the text names, if any
    Raises EcmError for the first problem in the file, with its place and a hint.
    """
    spec, errors = _check(text, file, attached, recipients)
    if spec is None:
        raise errors[0]
    return spec


def parse_campaign_all(
    text: str, file: str, attached: Mapping[str, str], recipients: str | None = None
) -> list[EcmError]:
    """All that is wrong with a campaign file, in the order of the file; empty if `parse_campaign` would take it."""
    return _check(text, file, attached, recipients)[1]


def _check(
    text: str, file: str, attached: Mapping[str, str], recipients: str | None
) -> tuple[CampaignSpec | None, list[EcmError]]:
    try:
        document = load_toml(text, file)
    except EcmError as error:
        return None, [error]
    # What is wrong between keys is looked for in the document as written: one wrong value must not hide the next.
    problems = [*_audience(document, recipients), *_bodies(document, attached), *_unsubscribing(document)]
    problems += _headers(document)
    parsed = None
    try:
        parsed = _CampaignFile.model_validate(document)
    except ValidationError as error:
        problems += explain(error, _CampaignFile)
    if problems or parsed is None:
        return None, in_file_order(problems, file, Places(text))
    return _spec(parsed, attached, recipients), []


def _spec(parsed: _CampaignFile, attached: Mapping[str, str], recipients: str | None) -> CampaignSpec:
    common = {name: getattr(parsed, name) for name in _Common.model_fields}
    if recipients is not None:
        common |= {"recipients": recipients, "audience": None}
    mailbox = parse_mailbox(parsed.from_)
    assert mailbox is not None, "checked by the model"
    return CampaignSpec(
        **common,
        from_name=mailbox[0],
        from_address=mailbox[1],
        html=None if parsed.html is None else attached[parsed.html],
        text=None if parsed.text is None else attached[parsed.text],
        html_file=parsed.html,
        text_file=parsed.text,
        unsubscribe_mailto=parsed.unsubscribe.mailto,
        unsubscribe_url=parsed.unsubscribe.url,
    )


def _audience(document: dict[str, Any], recipients: str | None) -> list[Problem]:
    if recipients is not None:
        return []
    if "recipients" in document and "audience" in document:
        text = "both `recipients` and `audience`: a campaign has one of them"
        second = [key for key in document if key in ("recipients", "audience")][1]
        return [Problem((second,), "invalid_value", text, "remove one of them", at_key=True)]
    if "recipients" not in document and "audience" not in document:
        hint = 'add recipients = "recipients.csv" (a file) or audience = "customers" (a list)'
        return [Problem(("recipients",), "missing_key", "neither `recipients` nor `audience`", hint, at_key=True)]
    return []


def _bodies(document: dict[str, Any], attached: Mapping[str, str]) -> list[Problem]:
    if "html" not in document and "text" not in document:
        hint = 'add html = "message.html" or text = "message.txt", or both'
        return [Problem(("html",), "missing_key", "neither `html` nor `text`: no message", hint, at_key=True)]
    problems = []
    for key in ("html", "text"):
        path = document.get(key)
        if not isinstance(path, str):
            continue
        content = attached.get(path)
        if content is None:
            problems.append(Problem((key,), "file_missing", f"`{key}`: no such file: {path}"))
        elif not content.strip():
            problems.append(Problem((key,), "file_empty", f"`{key}`: an empty file: {path}"))
        elif "\0" in content:
            problems.append(Problem((key,), "file_binary", f"`{key}`: not a text file: {path}"))
    return problems


def _unsubscribing(document: dict[str, Any]) -> list[Problem]:
    table = document.get("unsubscribe", {})
    if document.get("kind", "marketing") != "marketing" or not isinstance(table, dict):
        return []
    if "mailto" in table or "url" in table:
        return []
    text = "no [unsubscribe]: marketing mail must offer a way to unsubscribe"
    return [Problem(("unsubscribe",), "no_unsubscribe", text, _UNSUBSCRIBE_HINT, at_key=True)]


def _headers(document: dict[str, Any]) -> list[Problem]:
    table = document.get("headers")
    problems = []
    for name, value in table.items() if isinstance(table, dict) else ():
        path = ("headers", name)
        if not _HEADER_NAME.fullmatch(name):
            text = f'not a name of a header: `"{name}"`'
            problems.append(Problem(path, "bad_header", text, "printable ASCII without `:`", at_key=True))
        elif name.lower() in _OWN_HEADERS or name.lower().startswith(_OWN_PREFIXES):
            hint = "reply_to, from and subject are keys of their own" if name.lower() in _KEYED else "leave it out"
            problems.append(
                Problem(path, "bad_header", f"a header the engine writes itself: `{name}`", hint, at_key=True)
            )
        elif isinstance(value, str) and (character := control_character(value)) is not None:
            kind = "a line break, which would start another header" if character in "\r\n" else "a control character"
            problems.append(Problem(path, "bad_header", f"`headers.{name}` holds {kind}", "write it on one line"))
    return problems


_KEYED = ("reply-to", "from", "subject")
