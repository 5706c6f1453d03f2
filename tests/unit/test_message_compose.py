"""Whole messages, read back with the standard library's email package."""

from __future__ import annotations

import pytest

from actors.message.compose import ComposeError, Composer, MissingField
from actors.message.identity import Identity
from broker.contract.errors import EcmError
from tests.fixtures.messages import (
    DATE_S,
    INSTANCE,
    KEY,
    composed,
    make_composer,
    make_spec,
    parsed,
    read,
    row,
    text_of,
)


def test_message_reads_back_as_template_and_row_say() -> None:
    """Subject, From, To and both bodies decode to the templates with the row's fields in their places."""
    composer = make_composer(
        subject="Grüße, {{ first_name }} 🎂",
        from_name="Bücher & Töchter",
        text="Hallo {{ first_name }},\n\n.\nEnde \n",
        html="<p>Hallo {{ first_name }}</p>\n",
    )
    message = read(composer, first_name="Zoë <z>", email="zoe@bücher.example")
    assert message["Subject"] == "Grüße, Zoë <z> 🎂"
    assert message["From"].addresses[0].display_name == "Bücher & Töchter"
    assert message["From"].addresses[0].addr_spec == "news@example.com"
    assert message["To"] == "zoe@xn--bcher-kva.example"
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert text_of(message) == "Hallo Zoë <z>,\n\n.\nEnde \n"
    assert text_of(message, "html") == "<p>Hallo Zoë &lt;z&gt;</p>\n"


def test_required_fields_stand_there_exactly_once() -> None:
    """The fields that Gmail and RFC 5322 want once are there once, Date naming the time that was given."""
    message = read(make_composer(reply_to="Help Desk <help@example.com>", headers={"Precedence": "bulk"}))
    for name in ("From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "List-Unsubscribe", "List-Id"):
        assert len(message.get_all(name) or []) == 1, name
    assert message["Date"].datetime.timestamp() == DATE_S
    assert message["Reply-To"] == "Help Desk <help@example.com>"
    assert message["Precedence"] == "bulk"
    assert message["MIME-Version"] == "1.0"


def test_envelope_carries_the_addresses_of_sender_and_recipient() -> None:
    """MAIL FROM is the From address, RCPT TO the recipient's; SMTPUTF8 only where a local part needs it."""
    message = composed(make_composer(from_address="news@bücher.example"))
    assert message[:2] == (b"news@xn--bcher-kva.example", b"anna@example.org")
    assert not message.smtputf8
    message = composed(make_composer(), email="jürgen@example.org")
    assert message.smtputf8
    assert message.rcpt_to == "jürgen@example.org".encode()
    assert composed(make_composer(from_address="grüße@example.com")).smtputf8
    assert composed(make_composer(reply_to="Wir <grüße@example.com>")).smtputf8


@pytest.mark.parametrize(
    ("changes", "unsubscribe", "post"),
    [
        ({}, "<https://example.com/u?e=anna%40example.org>, <mailto:unsubscribe@example.com>", True),
        ({"unsubscribe_mailto": None}, "<https://example.com/u?e=anna%40example.org>", True),
        ({"unsubscribe_url": None}, "<mailto:unsubscribe@example.com>", False),
        ({"unsubscribe_url": None, "unsubscribe_mailto": None, "kind": "transactional"}, None, False),
    ],
)
def test_list_headers_follow_the_unsubscribe_settings(
    changes: dict[str, str | None], unsubscribe: str | None, post: bool
) -> None:
    """List-Unsubscribe names what is configured; One-Click only with a url; no list fields without [unsubscribe]."""
    message = read(make_composer(**changes))
    assert message["List-Unsubscribe"] == unsubscribe
    assert message["List-Unsubscribe-Post"] == ("List-Unsubscribe=One-Click" if post else None)
    assert (message["List-Id"] is None) == (unsubscribe is None)


def test_templates_can_print_the_unsubscribe_address() -> None:
    """`unsubscribe_url` is the recipient's own link, or the mailto link where only that is configured."""
    text = "{{ unsubscribe_url }}\n"
    assert text_of(read(make_composer(text=text))) == "https://example.com/u?e=anna%40example.org\n"
    assert text_of(read(make_composer(text=text, unsubscribe_url=None))) == "mailto:unsubscribe@example.com\n"
    nothing = make_composer(text=text, unsubscribe_url=None, unsubscribe_mailto=None, kind="transactional")
    with pytest.raises(MissingField, match="unsubscribe_url"):
        composed(nothing)


def test_email_is_the_address_whatever_its_column_is_called() -> None:
    """`{{ email }}` prints the address that is mailed; it wins over a column of that name."""
    composer = Composer(make_spec(text="{{ email }} {{ work }}\n"), INSTANCE, 7, "work")
    fields = {"work": " a@example.org ", "email": "other", "first_name": "A"}
    message = composer.compose(fields, KEY, DATE_S)
    assert message.rcpt_to == b"a@example.org"
    assert text_of(parsed(message.data)).startswith("a@example.org ")


def test_single_part_without_an_alternative() -> None:
    """One template gives a message of one part, and a missing final line end is added."""
    for changes, subtype in (({"text": "hi"}, "plain"), ({"text": None, "html": "<b>hi</b>"}, "html")):
        message = read(make_composer(**changes))
        assert message.get_content_type() == f"text/{subtype}"
        assert text_of(message, subtype) in ("hi\n", "<b>hi</b>\n")


@pytest.mark.parametrize("where", ["subject", "from_name"])
@pytest.mark.parametrize("evil", ["x\nBcc: b@example.net", "x\r\n\r\n<body>", "x\rX: y", "\n"])
def test_field_cannot_add_a_header(where: str, evil: str) -> None:
    """A line break that a field brings into a header value is an error for that recipient."""
    composer = make_composer(**{where: "Hi {{ first_name }}"})
    with pytest.raises(ComposeError, match="line break"):
        composed(composer, first_name=evil)


def test_header_like_text_in_a_body_stays_text() -> None:
    """Fields that look like headers, end of data, or encodings come out of the body as they went in."""
    evil = "Subject: x\r\n\r\n.\r\nMAIL FROM:<x>\rQUIT\n=3D =\n" + "\x1d!\x1e\x00"
    message = read(make_composer(text="{{ x }}|\n", html="{{ x }}|\n"), x=evil)
    expected = evil.replace("\r\n", "\n").replace("\r", "\n")
    assert text_of(message) == expected + "|\n"
    assert message["Subject"] == "Hello Anna"


def test_body_lines_are_never_longer_than_smtp_allows() -> None:
    """A field or a template of 5,000 characters without a break goes out in lawful lines."""
    long = "<a href='" + "x" * 5000 + "'>"
    message = read(make_composer(text="{{ x }}" + long + "\n", html=long + "{{ x }}\n"), x="y" * 5000)
    assert text_of(message) == "y" * 5000 + long + "\n"
    assert text_of(message, "html") == long + "y" * 5000 + "\n"


def test_boundary_does_not_occur_in_a_body() -> None:
    """A field that holds the campaign's own boundary gets the message another one."""
    boundary = Identity(INSTANCE, 7, "autumn-news", "example.com", "marketing").boundary().decode()
    for taken in (f"--{boundary}", f"{boundary} {boundary}.1"):
        message = read(make_composer(text="{{ x }}\n", html="<p>\n"), x=f"a\n{taken}\nb")
        assert message.get_boundary() not in taken.split()
        assert text_of(message) == f"a\n{taken}\nb\n"


def test_message_id_is_the_same_when_a_message_is_made_again() -> None:
    """Composing again, later and with other fields, keeps the Message-ID; another recipient has another."""
    composer = make_composer()
    first = parsed(composer.compose(row(), KEY, 1).data)["Message-ID"]
    assert first == parsed(make_composer().compose(row(first_name="B"), KEY, 2).data)["Message-ID"]
    assert first != parsed(composer.compose(row(), KEY[::-1], 1).data)["Message-ID"]


def test_extra_headers_may_hold_tags_and_vanish_when_empty() -> None:
    """A header of the campaign file is a template too; one that has nothing to say is left out."""
    composer = make_composer(headers={"X-Customer": "{{ number }}", "X-Tag": "spring"})
    assert read(composer, number="ä 7")["X-Customer"] == "ä 7"
    message = read(composer, number=" ")
    assert message["X-Customer"] is None
    assert message["X-Tag"] == "spring"


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"headers": {"Subject": "x"}}, "bad_header", "headers.Subject"),
        ({"headers": {"content-type": "x"}}, "bad_header", "headers.content-type"),
        ({"headers": {"X Y": "x"}}, "bad_header", "headers.X Y"),
        ({"headers": {"X-Y": "a\nb"}}, "bad_header", "headers.X-Y"),
        ({"subject": "a\nb"}, "bad_header", "subject"),
        ({"from_address": "nobody"}, "bad_header", "from"),
        ({"reply_to": "nobody"}, "bad_header", "reply_to"),
        ({"unsubscribe_url": "http://example.com"}, "bad_header", "unsubscribe.url"),
        ({"unsubscribe_mailto": "nobody"}, "bad_header", "unsubscribe.mailto"),
    ],
)
def test_faults_of_the_campaign_file_are_found_when_the_composer_is_made(
    changes: dict[str, object], code: str, field: str
) -> None:
    """What is wrong for everybody is the author's error, with its key, before any recipient is looked at."""
    with pytest.raises(EcmError) as caught:
        make_composer(**changes)
    assert (caught.value.code, caught.value.field) == (code, field)


@pytest.mark.parametrize("address", [None, 5, "nobody", "a@b@c", ""])
def test_recipient_without_an_address_has_no_message(address: object) -> None:
    """An address column that is missing or holds no address is an error for that recipient alone."""
    with pytest.raises(ComposeError):
        composed(make_composer(), email=address)


def test_unsubscribe_address_made_of_a_field_must_be_https() -> None:
    """A per-recipient link that is not https, or breaks the header, is refused for that recipient."""
    composer = make_composer(unsubscribe_url="{{ link }}")
    assert "<https://example.com/1>" in read(composer, link="https://example.com/1")["List-Unsubscribe"]
    for link in ("http://example.com", "", "https://x/\nBcc: y"):
        with pytest.raises(ComposeError):
            composed(composer, link=link)
    assert read(composer, link="https://x.example/> y")["List-Unsubscribe"].startswith("<https://x.example/%3E%20y>")


def test_check_raises_what_compose_would() -> None:
    """`check` looks at one recipient without making a message."""
    composer = make_composer()
    composer.check(row())
    with pytest.raises(MissingField):
        composer.check({"email": "anna@example.org"})
    with pytest.raises(ComposeError):
        composer.check(row(first_name="a\nb"))


def test_fields_need_not_be_text() -> None:
    """Numbers print as numbers; None is a field that is not there."""
    composer = make_composer(text="{{ first_name }} {{ n + 1 }}\n")
    assert text_of(read(composer, n=41)) == "Anna 42\n"
    with pytest.raises(MissingField):
        composed(composer, n=None)


def test_composer_is_made_of_a_bundle() -> None:
    """`from_bundle` reads spec, instance, campaign and address column; the message is the same."""

    class Bundle:
        spec = make_spec()
        instance = INSTANCE
        campaign = 7
        email_field = "email"

    assert composed(Composer.from_bundle(Bundle())) == composed(make_composer())
