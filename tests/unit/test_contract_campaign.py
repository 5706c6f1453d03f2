"""The campaign file: what it means, and what is said of every mistake in it."""

from __future__ import annotations

import pytest

from broker.contract import codec
from broker.contract.campaign import Breaker, CampaignSpec, parse_campaign, parse_campaign_all
from broker.contract.errors import EcmError
from broker.contract.mailbox import is_address, parse_mailbox
from broker.contract.settings import Rate

TEXT = """\
name = "autumn-news"
subject = "Hello {{ first_name }}"
from = "News <news@example.com>"
html = "message.html"
recipients = "recipients.csv"
relay = "default"

[unsubscribe]
mailto = "unsubscribe@example.com"
url = "https://example.com/u?e={{ email | urlencode }}"

[rate]
per_second = 100
"""
ATTACHED = {"message.html": "<p>Hello</p>", "message.txt": "Hello", "empty.txt": " \n", "binary": "\0"}


def changed(old: str, new: str) -> str:
    """The text with one thing in it changed."""
    assert old in TEXT
    return TEXT.replace(old, new)


def said(text: str, recipients: str | None = None) -> list[str]:
    """What is said of a campaign file, without the name of the file."""
    errors = parse_campaign_all(text, "c.toml", ATTACHED, recipients)
    for error in errors:
        assert error.text().startswith("error: c.toml:")
        assert len(error.text().splitlines()) <= 2
    return [error.text().removeprefix("error: c.toml:") for error in errors]


def test_the_designs_file_means_what_it_says() -> None:
    """Everything the file says is in the specification, and what it does not say has its default."""
    spec = parse_campaign(TEXT, "c.toml", ATTACHED)
    assert (spec.name, spec.subject) == ("autumn-news", "Hello {{ first_name }}")
    assert (spec.from_name, spec.from_address) == ("News", "news@example.com")
    assert (spec.html, spec.html_file, spec.text, spec.text_file) == ("<p>Hello</p>", "message.html", None, None)
    assert (spec.recipients, spec.audience, spec.email_column, spec.relay) == ("recipients.csv", None, None, "default")
    assert (spec.kind, spec.uncertain, spec.give_up_s, spec.weight, spec.priority) == (
        "marketing",
        "resend",
        None,
        1,
        0,
    )
    assert spec.unsubscribe_mailto == "unsubscribe@example.com"
    assert spec.unsubscribe_url == "https://example.com/u?e={{ email | urlencode }}"
    assert spec.rate == Rate(per_second=100)
    assert spec.breaker == Breaker(bounced=0.10, deferred=0.50, sender_fault=0.05, after=1000)
    assert (spec.headers, spec.reply_to) == ({}, "")


def test_a_specification_travels_as_a_plain_map() -> None:
    """A bundle gives back the campaign that was put into it."""
    spec = parse_campaign(TEXT + "[headers]\nX-Brand = 'a'\n[breaker]\nafter = 5\n", "c.toml", ATTACHED)
    assert CampaignSpec.from_map(codec.unpack(codec.pack(spec.to_map()))) == spec
    assert spec.headers == {"X-Brand": "a"}
    assert spec.breaker.after == 5


def test_rate_defaults_apply_as_a_set() -> None:
    """No [rate], or one without second and minute limits, keeps the defaults; otherwise none of them."""
    without = TEXT.partition("[rate]")[0]
    assert parse_campaign(without, "c.toml", ATTACHED).rate == Rate.campaign_default()
    rate = parse_campaign(without + "[rate]\nwait_ms = 5\n", "c.toml", ATTACHED).rate
    assert (rate.per_second, rate.per_minute, rate.burst, rate.wait_ms) == (100, 5000, 200, 5)
    assert parse_campaign(without + "[rate]\nper_minute = 60\n", "c.toml", ATTACHED).rate == Rate(per_minute=60)


def test_recipients_given_on_the_command_line_take_the_place_of_the_files_audience() -> None:
    """With a file named outside, the campaign file may name a file, a list or nobody."""
    for text in (TEXT, changed("recipients =", "audience ="), changed('recipients = "recipients.csv"\n', "")):
        spec = parse_campaign(text, "c.toml", ATTACHED, "/data/people.csv")
        assert (spec.recipients, spec.audience) == ("/data/people.csv", None)
    listed = parse_campaign(changed("recipients =", "audience ="), "c.toml", ATTACHED)
    assert (listed.recipients, listed.audience) == (None, "recipients.csv")
    assert listed.with_recipients("/p.csv").recipients == "/p.csv"


def test_transactional_mail_needs_no_unsubscribe() -> None:
    """The kind decides; one of mailto and url is enough for marketing."""
    bare = TEXT.partition("[unsubscribe]")[0]
    assert parse_campaign(bare + 'kind = "transactional"\n', "c.toml", ATTACHED).unsubscribe_url is None
    spec = parse_campaign(bare + '[unsubscribe]\nmailto = "mailto:u@example.com?subject=out"\n', "c.toml", ATTACHED)
    assert spec.unsubscribe_mailto == "u@example.com?subject=out"


MISTAKES = [
    (
        ('"autumn-news"', '"123"'),
        "1:8: `name` is all digits, which would be a campaign's id",
        'put a letter in it: "news-123"',
    ),
    (
        ('"autumn-news"', '"Autumn News"'),
        "1:8: `name` must be letters, digits, `.`, `_` and `-`, at most 100, a letter or digit first",
        'for example name = "Autumn-News"',
    ),
    (('"autumn-news"', "5"), "1:8: `name` must be text: `5`", None),
    (
        ('"Hello {{ first_name }}"', '"a\\r\\nb"'),
        "2:11: `subject` holds a line break, which would start another header",
        "write it on one line",
    ),
    (('"Hello {{ first_name }}"', '"a\\u0000b"'), "2:11: `subject` holds a control character: U+0000", "remove it"),
    (('"Hello {{ first_name }}"', '" "'), "2:11: `subject` is empty", 'write subject = "Hello {{ first_name }}"'),
    (
        ("News <news@example.com>", "News"),
        '3:8: `from` must be one address: `"News"`',
        'for example "News <news@example.com>"',
    ),
    (
        ("News <news@example.com>", "a@b.c, d@e.f"),
        '3:8: `from` must be one address: `"a@b.c, d@e.f"`',
        'for example "News <news@example.com>"',
    ),
    (
        ("News <news@example.com>", "News\\n<news@example.com>"),
        "3:8: `from` holds a line break, which would start another header",
        "write it on one line",
    ),
    (
        ('html = "message.html"\n', ""),
        "1:1: neither `html` nor `text`: no message",
        'add html = "message.html" or text = "message.txt", or both',
    ),
    (('"message.html"', '"nope.html"'), "4:8: `html`: no such file: nope.html", None),
    (('html = "message.html"', 'text = "empty.txt"'), "4:8: `text`: an empty file: empty.txt", None),
    (('"message.html"', '"binary"'), "4:8: `html`: not a text file: binary", None),
    (
        ('recipients = "recipients.csv"\n', ""),
        "1:1: neither `recipients` nor `audience`",
        'add recipients = "recipients.csv" (a file) or audience = "customers" (a list)',
    ),
    (
        ('relay = "default"', 'audience = "customers"'),
        "6:1: both `recipients` and `audience`: a campaign has one of them",
        "remove one of them",
    ),
    (
        ('relay = "default"', 'kind = "transactionl"'),
        '6:8: `kind` must be one of "marketing", "transactional": `"transactionl"`',
        'did you mean "transactional"?',
    ),
    (('relay = "default"', "weight = 0"), "6:10: `weight` must be a whole number from 1 to 1000: `0`", None),
    (
        ('relay = "default"', "give_up_s = 1.5"),
        "6:13: `give_up_s` must be a whole number of seconds from 1 to 2592000: `1.5`",
        None,
    ),
    (
        ('relay = "default"', 'uncertain = "hld"'),
        '6:13: `uncertain` must be one of "resend", "hold": `"hld"`',
        'did you mean "hold"?',
    ),
    (
        ('relay = "default"', 'reply_to = "a"'),
        '6:12: `reply_to` must be one address: `"a"`',
        'for example "News <news@example.com>"',
    ),
    (('relay = "default"', 'from_ = "a@b.c"'), "6:1: unknown key: `from_`", "did you mean `from`?"),
    (
        ('"unsubscribe@example.com"', '"example.com"'),
        '9:10: `unsubscribe.mailto` must be an address: `"example.com"`',
        'for example "unsubscribe@example.com"',
    ),
    (
        ("https://example.com/u", "http://example.com/u"),
        (
            "10:7: `unsubscribe.url` must begin with https:// and a host (RFC 8058): "
            '`"http://example.com/u?e={{ email | urlencode }}"`'
        ),
        'write url = "https://example.com/u?e={{ email | urlencode }}"',
    ),
    (
        ("{{ email | urlencode }}", "1"),
        '10:7: `unsubscribe.url` is the same for every recipient: `"https://example.com/u?e=1"`',
        'write url = "https://example.com/u?e={{ email | urlencode }}"',
    ),
    (
        ("/u?e=", "/u ?e="),
        (
            "10:7: `unsubscribe.url` holds a space, `<`, `>` or a quote outside of tags: "
            '`"https://example.com/u ?e={{ email | urlencode }}"`'
        ),
        'write url = "https://example.com/u?e={{ email | urlencode }}"',
    ),
    (
        ("per_second = 100", "per_second = -1"),
        "13:14: `rate.per_second` must be a number from 0 (no limit) to 1000000: `-1`",
        None,
    ),
    (("per_second = 100", "per_secnd = 100"), "13:1: unknown key: `rate.per_secnd`", "did you mean `per_second`?"),
    (
        ("per_second = 100", "weight = 2"),
        "13:1: unknown key: `rate.weight`",
        "`weight` belongs before the first [table] of the file",
    ),
    (
        ("per_second = 100", "[breaker]\nbounced = 10"),
        "14:11: `breaker.bounced` must be a share from 0 to 1: `10`",
        None,
    ),
    (
        ("per_second = 100", '[headers]\nX-A = "a\\nb"'),
        "14:7: `headers.X-A` holds a line break, which would start another header",
        "write it on one line",
    ),
    (
        ("per_second = 100", '[headers]\nSubject = "a"'),
        "14:1: a header the engine writes itself: `Subject`",
        "reply_to, from and subject are keys of their own",
    ),
    (
        ("per_second = 100", '[headers]\nlist-unsubscribe-post = "a"'),
        "14:1: a header the engine writes itself: `list-unsubscribe-post`",
        "leave it out",
    ),
    (
        ("per_second = 100", '[headers]\n"a b" = "a"'),
        '14:1: not a name of a header: `"a b"`',
        "printable ASCII without `:`",
    ),
]


@pytest.mark.parametrize(("change", "message", "hint"), MISTAKES, ids=[mistake[0][1][:40] for mistake in MISTAKES])
def test_each_mistake_is_one_line_with_place_and_hint(change: tuple[str, str], message: str, hint: str | None) -> None:
    """What is wrong, where, and how to mend it: the whole text is pinned."""
    assert said(changed(*change)) == [message if hint is None else f"{message}\nhint: {hint}"]


def test_marketing_without_unsubscribe_is_told_how_to_add_it() -> None:
    """The error names both ways out."""
    with pytest.raises(EcmError) as caught:
        parse_campaign(TEXT.partition("[unsubscribe]")[0], "c.toml", ATTACHED)
    error = caught.value
    assert (error.code, error.line, error.column, error.exit) == ("no_unsubscribe", 1, 1, 2)
    assert error.hint is not None
    for part in ("[unsubscribe]", "mailto = ", 'url = "https://', 'kind = "transactional"'):
        assert part in error.hint
    assert said(changed("mailto =", "mail ="))[0].startswith("9:1: unknown key: `unsubscribe.mail`")
    empty = TEXT.partition("[unsubscribe]")[0] + "[unsubscribe]\n"
    assert said(empty)[0].startswith("8:1: no [unsubscribe]")


def test_a_misspelt_key_is_told_before_the_one_it_leaves_missing() -> None:
    """Errors come in the order of the file, what is missing last; the first one is raised."""
    text = changed("from =", "form =").replace("per_second = 100", 'per_second = "x"')
    assert [line.splitlines()[0] for line in said(text)] == [
        "3:1: unknown key: `form`",
        '13:14: `rate.per_second` must be a number from 0 (no limit) to 1000000: `"x"`',
        "1:1: `from` is missing",
    ]
    with pytest.raises(EcmError) as caught:
        parse_campaign(text, "c.toml", ATTACHED)
    assert caught.value.field == "form"


def test_an_empty_file_lists_all_it_lacks() -> None:
    """Every key that must be there is named once."""
    fields = [error.field for error in parse_campaign_all("", "c.toml", {})]
    assert sorted(filter(None, fields)) == ["from", "html", "name", "recipients", "subject", "unsubscribe"]


def test_invalid_toml_is_the_only_error() -> None:
    """Nothing can be said of a file that is not TOML but where it breaks."""
    assert said("name = autumn") == ['1:8: not valid TOML: invalid value\nhint: text needs quotes: key = "value"']


@pytest.mark.parametrize(
    ("text", "mailbox"),
    [
        ("news@example.com", ("", "news@example.com")),
        ("  News  <news@example.com> ", ("News", "news@example.com")),
        ('"Smith, \\"J\\"" <j@example.com>', ('Smith, "J"', "j@example.com")),
        ("{{ brand <'a@b' }} <n@example.com>", ("{{ brand <'a@b' }}", "n@example.com")),
        ("Jürgen <jürgen@exämple.com>", ("Jürgen", "jürgen@exämple.com")),
        ("<root@localhost>", ("", "root@localhost")),
        ("News", None),
        ("", None),
        ("<>", None),
        ("a@b, c@d", None),
        ("a@b <c@d>", None),
        ("A <a@b> B <c@d>", None),
        ("News <news@example.com", None),
    ],
)
def test_a_mailbox_is_a_name_and_one_address(text: str, mailbox: tuple[str, str] | None) -> None:
    """Whatever is not exactly one mailbox is None."""
    assert parse_mailbox(text) == mailbox


@pytest.mark.parametrize(
    "text",
    [
        "a b@c.d",
        "a@",
        "@b",
        "a@b@c",
        "a@-b.c",
        "a..b@c",
        ".a@b",
        "a@b..c",
        "a@b c",
        "a\n@b",
        "x" * 65 + "@b.c",
        "a@" + "b" * 64,
        "a\u00a0b@c.d",
        '"a"@b.c',
        "a@[127.0.0.1]",
    ],
)
def test_what_smtp_cannot_carry_is_no_address(text: str) -> None:
    """Spaces, controls, empty labels, over-long parts and forms nobody sends from are refused."""
    assert not is_address(text)
