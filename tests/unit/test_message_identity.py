"""Addresses, links and names of campaigns on the wire."""

from __future__ import annotations

import re

import pytest

from actors.message.identity import Identity, address, https_link, mailto_link
from actors.message.mime import ComposeError


@pytest.mark.parametrize(
    ("text", "wire", "smtputf8"),
    [
        ("Anna.Smith+x@Example.com", b"Anna.Smith+x@Example.com", False),
        ("  anna@example.com ", b"anna@example.com", False),
        ("anna@bücher.example", b"anna@xn--bcher-kva.example", False),
        ("jürgen@example.com", "jürgen@example.com".encode(), True),
        ("用户@例子.example", "用户@xn--fsqu00a.example".encode(), True),
        ('"two words"@example.com', b'"two words"@example.com', False),
        ("a@[192.0.2.1]", b"a@[192.0.2.1]", False),
    ],
)
def test_address_takes_its_wire_form(text: str, wire: bytes, smtputf8: bool) -> None:
    """Domains leave as A-labels; only a local part beyond ASCII asks for SMTPUTF8."""
    assert address(text) == (wire, smtputf8)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "anna",
        "@example.com",
        "anna@",
        "a b@example.com",
        "a@example.com>\r\nRCPT TO:<b@example.com",
        "a@example.com\nBcc: b@example.com",
        "<a@example.com>",
        "a,b@example.com",
        "a@b@example.com",
        '"a"b"@example.com',
        "x" * 65 + "@example.com",
        "a@" + "x" * 250 + ".example",
        "a@exa mple.com",
        "a\x00@example.com",
        "a\u2028@example.com",
        "a@\u2028.example",
    ],
)
def test_what_is_not_one_address_is_refused(text: str) -> None:
    """Nothing that could leave the angle brackets, a header or the limits of RFC 5321 becomes an address."""
    with pytest.raises(ComposeError):
        address(text)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://example.com/u?e=a%40b", "https://example.com/u?e=a%40b"),
        ("https://example.com/ü?q=a b<c>", "https://example.com/%C3%BC?q=a%20b%3Cc%3E"),
        ("https://bücher.example?x", "https://xn--bcher-kva.example?x"),
        (" HTTPS://example.com/ ", "https://example.com/"),
    ],
)
def test_unsubscribe_address_becomes_a_uri(url: str, sent: str) -> None:
    """What a URI cannot hold is encoded, so that the angle brackets around it stay its only ones."""
    assert https_link(url) == sent


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "example.com",
        "",
        "https://",
        "https://x/\r\nBcc: a",
        "https://x/\x00",
        "https://x/" + "a" * 900,
    ],
)
def test_what_is_no_https_address_is_refused(url: str) -> None:
    """RFC 8058 wants https; line breaks, control characters and endless addresses have no place in a header."""
    with pytest.raises(ComposeError):
        https_link(url)


def test_mailto_is_made_of_a_mailbox_or_a_uri() -> None:
    """An address, a URI and one with a subject all become one mailto URI."""
    assert mailto_link("u@example.com") == "mailto:u@example.com"
    assert mailto_link("mailto:u@bücher.example?subject=go away") == "mailto:u@xn--bcher-kva.example?subject=go%20away"
    with pytest.raises(ComposeError):
        mailto_link("nobody")


def identity(**changes: object) -> Identity:
    """The names of campaign 7."""
    given = {"instance": "ab" * 16, "campaign": 7, "name": "autumn-news", "domain": "example.com", "kind": "marketing"}
    return Identity(**{**given, **changes})  # type: ignore[arg-type]


def test_message_id_depends_on_instance_campaign_and_recipient_only() -> None:
    """The same three give the same Message-ID; another of any gives another, always in the From domain."""
    first = identity().message_id(b"k" * 16)
    assert first == identity(name="renamed").message_id(b"k" * 16)
    others = [
        identity().message_id(b"l" * 16),
        identity(campaign=8).message_id(b"k" * 16),
        identity(instance="cd" * 16).message_id(b"k" * 16),
    ]
    assert len({first, *others}) == 4
    assert all(re.fullmatch(rb"<[78]\.[0-9a-f]{32}@example\.com>", found) for found in (first, *others))


@pytest.mark.parametrize("domain", ["x.io", "example.com", "a-very-long-domain-name.example.co.uk", "a.b"])
def test_feedback_id_has_four_fields_and_a_sender_id_of_lawful_length(domain: str) -> None:
    """Google reads at most four fields and a SenderId of 5 to 15 characters."""
    fields = identity(domain=domain).feedback_id.decode().split(":")
    assert len(fields) == 4
    assert re.fullmatch(r"[a-z0-9]{5,15}", fields[-1])


def test_list_id_is_stable_and_tells_names_apart() -> None:
    """A list's name does not change with the campaign's number; names that shorten alike stay different."""
    assert identity().list_id == identity(campaign=8).list_id == b"<autumn-news.example.com>"
    names = ["Frühling!", "fruhling", "日本", "中国", "n" * 50, "n" * 51, "a:b"]
    found = {identity(name=name).list_id for name in names}
    assert len(found) == len(names)
    assert all(re.fullmatch(rb"<[a-z0-9-]{1,39}\.example\.com>", one) for one in found)


def test_boundaries_differ_by_attempt_and_campaign() -> None:
    """A body that holds one boundary gets another; every boundary holds what quoted-printable cannot."""
    found = {identity().boundary(), identity().boundary(1), identity(campaign=8).boundary()}
    assert len(found) == 3
    assert all(b.startswith(b"=_") and len(b) <= 70 for b in found)
