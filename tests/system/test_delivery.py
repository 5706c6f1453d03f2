"""What arrives: messages read back from real servers and compared with what the CSV and the templates say.

The oracles are Debian's smtp-sink, a private Postfix, and the standard library's parser.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from html import escape
from pathlib import Path
from typing import Any

import pytest

from broker.contract.errors import EcmError
from tests.fixtures.instance import House, Instance, StartInstance, arrivals, housing, settings_for
from tests.fixtures.postfix import RunningPostfix
from tests.fixtures.sink import StartSink
from tests.fixtures.smtp_sink import RunningSmtpSink, StartSmtpSink

TEXT = "Dear {{ first_name }},\n.\n..two dots\ntrailing blanks  \n\n{{ note }}\nFrom us = you\n"
HTML = '<p title="{{ first_name }}">Dear {{ first_name }},</p>\n<p>{{ note }}</p>\n'
CAMPAIGN = """\
name = "{name}"
subject = "{{{{ first_name }}}}: a note"
from = "Nouvelles d'été <news@example.com>"
text = "message.txt"
html = "message.html"
[unsubscribe]
mailto = "unsubscribe@example.com"
url = "https://example.com/u?e={{{{ email | urlencode }}}}"
[rate]
per_second = 0
"""

NAMES = [
    "Ann",
    "Łukasz Żółć",
    "Zoë 😀 " + "très " * 40,
    "O'Neil & <Sons>",
    "=?utf-8?q?fake?=",
    "a = b; c, d: e",
    '"quoted"',
    "王小明",
]
NOTES = [
    "plain",
    ".starts with a dot",
    "x" * 5000,
    "ends with blanks   ",
    "ends with = and tab\t",
    "é" * 3000,
    "one\ntwo\n.\n..\nthree",
    "Bcc: victim@example.com\r\n\r\nand a body",
    "--boundary\nContent-Type: text/html",
    "<script>alert(1)</script> & more",
    "From the start\nFrom the start",
]
PEOPLE = [
    {"email": f"user{number}@example.org", "first_name": NAMES[number % len(NAMES)], "note": NOTES[number % len(NOTES)]}
    for number in range(len(NAMES) * len(NOTES))
]


def request(engine: Instance, name: str, people: list[dict[str, str]]) -> dict[str, Any]:
    """Arguments that send the campaign to these people."""
    path = engine.directory / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(people[0]))
        writer.writeheader()
        writer.writerows(people)
    attached = {"message.txt": TEXT, "message.html": HTML}
    return {"text": CAMPAIGN.format(name=name), "attached": attached, "recipients": str(path), "checked": True}


def rendered(template: str, person: dict[str, str], *, html: bool) -> str:
    """The template with the person's fields in it: the oracle."""

    def value(match: re.Match[str]) -> str:
        field = person[match[1]]
        return escape(field) if html else field

    return re.sub(r"\{\{ (\w+) \}\}", value, template)


def lines(text: str) -> list[str]:
    """Lines whatever ends them: in mail each ends with CRLF."""
    return text.replace("\r\n", "\n").rstrip("\n").split("\n")


def unescaped(text: str) -> str:
    """HTML may escape quotes in more than one way."""
    return text.replace("&#x27;", "&#39;").replace("&quot;", "&#34;").replace("&#x2f;", "/")


def compare(data: bytes, person: dict[str, str]) -> None:
    """A message as it arrived says what its template and its row say, and nothing else."""
    message = message_from_bytes(data, EmailMessage, policy=policy.default)
    assert not message.defects
    assert message["subject"] == f"{person['first_name']}: a note"
    assert message["to"] == person["email"]
    assert message["from"].addresses[0].display_name == "Nouvelles d'été"
    assert message["from"].addresses[0].addr_spec == "news@example.com"
    assert "bcc" not in message
    assert message["list-unsubscribe-post"] == "List-Unsubscribe=One-Click"
    address = person["email"].replace("@", "%40")
    assert f"<https://example.com/u?e={address}>" in message["list-unsubscribe"]
    assert message.get_content_type() == "multipart/alternative"
    text, html = message.iter_parts()
    assert lines(text.get_content()) == lines(rendered(TEXT, person, html=False))
    assert lines(unescaped(html.get_content())) == lines(unescaped(rendered(HTML, person, html=True)))
    assert max(len(line) for line in data.replace(b"\r\n", b"\n").split(b"\n")) <= 998


def test_every_message_arrives_as_its_template_and_row_say(smtp_sink: StartSmtpSink, instance: StartInstance) -> None:
    """Names beyond ASCII, dots, blanks, long lines, headers in fields: at Debian's smtp-sink all is as written.

    The same at one that announces no PIPELINING.
    """
    peers = {"pipelining": smtp_sink(), "lockstep": smtp_sink("-p")}
    engine = instance(settings_for({name: peer.port for name, peer in peers.items()}))
    engine.start()
    for name, peer in peers.items():
        arguments = request(engine, name, PEOPLE)
        arguments["text"] = arguments["text"].replace("[unsubscribe]", f'relay = "{name}"\n[unsubscribe]', 1)
        campaign = engine.ask("campaign.send", arguments)["campaign"]
        assert engine.finished(campaign)["sent"] == len(PEOPLE)
        compare_all(peer)
    modes = {relay["name"]: relay["mode"] for relay in engine.ask("engine.stats")["relays"]}
    assert modes == {name: name for name in peers}
    engine.stop()


def compare_all(peer: RunningSmtpSink) -> None:
    """Everybody got one message, under a Message-ID of its own, which says what it should."""
    kept = {message.rcpt.strip("<>"): message for message in peer.messages()}
    assert len(kept) == len(peer.messages()) == len(PEOPLE)
    for person in PEOPLE:
        assert kept[person["email"]].mail == "<news@example.com>"
        compare(kept[person["email"]].data, person)
    assert len({message_from_bytes(message.data)["message-id"] for message in kept.values()}) == len(PEOPLE)


def test_a_real_postfix_takes_a_campaign_over_tls_and_login(postfix: RunningPostfix, instance: StartInstance) -> None:
    """STARTTLS with a verified certificate and AUTH: each message is queued once, refusals are told apart."""
    before = len(postfix.accepted(count=0))
    engine = instance(
        f'[relay.default]\nhost = "{postfix.host}"\nport = {postfix.port}\ntls = "required"\n'
        f'ca_file = "{postfix.ca_file}"\nusername = "{postfix.username}"\npassword_file = "pw"\nconnections = 8\n'
        "[retry]\nfirst_s = 1\nmax_s = 1\n"
    )
    secret = Path(engine.directory / "pw")
    secret.write_text(postfix.password + "\n")
    secret.chmod(0o600)
    engine.start()
    people = [dict(person) for person in PEOPLE[:40]]
    people += [dict(PEOPLE[0], email=f"{who}@example.com") for who in ("bounce", "defer", "drop")]
    arguments = request(engine, "postfix", people)
    arguments["text"] = arguments["text"].replace("[unsubscribe]", "give_up_s = 2\n[unsubscribe]", 1)
    campaign = engine.ask("campaign.send", arguments)["campaign"]
    account = engine.finished(campaign)
    assert (account["sent"], account["bounced"], account["failed"]) == (40, 1, 2)
    accepted = postfix.accepted(count=before + 40)[before:]
    assert len(accepted) == len(set(accepted)) == 40
    told = {row["email"]: row for row in engine.export(campaign)}
    assert (told["bounce@example.com"]["state"], told["bounce@example.com"]["code"]) == ("bounced", 550)
    assert "nobody" in told["bounce@example.com"]["reply"]
    assert told["defer@example.com"]["code"] == 450
    assert told["defer@example.com"]["attempts"] >= 2
    assert engine.ask("engine.stats")["relays"][0]["mode"] == "bdat"
    engine.stop()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """An engine that tries again after a second."""
    with housing(tmp_path_factory.mktemp("sink"), more="[retry]\nfirst_s = 1\nmax_s = 1\n") as opened:
        yield opened


def test_who_was_deferred_is_mailed_at_the_second_attempt(hasty: House) -> None:
    """4xx to RCPT, to DATA and to the body, 421, and a connection lost before the body: each is tried again."""
    engine, relay = hasty
    kinds = ["anna", "defer-once", "421-once", "drop-before-once", "data-451-once", "body-452-4.3.1-once"]
    people = [f"{kind}+{number}@again.example.org" for number in range(8) for kind in kinds]
    campaign = engine.send("again", people)
    account = engine.finished(campaign)
    assert account["sent"] == len(people)
    assert account["attempts"] >= 8 * (2 * len(kinds) - 1)
    assert arrivals(relay, "again") == dict.fromkeys(people, 1)
    told = {row["email"]: row for row in engine.export(campaign)}
    assert {told[f"defer-once+{number}@again.example.org"]["attempts"] for number in range(8)} == {2}


def test_a_message_whose_fate_is_unknown_is_sent_once_more(hasty: House) -> None:
    """Relay gone between body and reply: a second copy under the same Message-ID, counted as resent."""
    engine, relay = hasty
    people = [f"drop-after-once+{number}@fate.example.org" for number in range(10)]
    account = engine.finished(engine.send("fate", people))
    assert (account["sent"], account["resent"]) == (10, 10)
    assert account["attempts"] >= 20  # and once more for each who was next on a connection that went
    assert arrivals(relay, "fate") == dict.fromkeys(people, 1)  # the sink counts a dropped one as not accepted
    held = engine.finished(engine.send("held", [f"drop-after+{n}@held.example.org" for n in range(5)]))
    assert (held["sent"], held["uncertain"]) == (0, 5)


def test_what_the_relay_said_of_a_refused_recipient_is_exported(hasty: House) -> None:
    """Code, enhanced status and words of each 5xx, at RCPT and after the body, are in the export; mail goes on."""
    engine, _ = hasty
    people = [
        "bounce+1@said.example.org", "body-554-5.7.1@said.example.org", "rcpt-552-5.2.2@said.example.org",
        "anna@said.example.org",
    ]  # fmt: skip
    campaign = engine.send("said", people)
    account = engine.finished(campaign)
    assert (account["sent"], account["bounced"], account["failed"]) == (1, 3, 0)
    told = {row["email"].partition("@")[0]: row for row in engine.export(campaign)}
    assert (told["bounce+1"]["code"], told["bounce+1"]["enhanced"]) == (550, "5.1.1")
    assert "User unknown" in told["bounce+1"]["reply"]
    assert (told["body-554-5.7.1"]["code"], told["body-554-5.7.1"]["enhanced"]) == (554, "5.7.1")
    assert (told["rcpt-552-5.2.2"]["code"], told["rcpt-552-5.2.2"]["state"]) == (552, "bounced")
    assert (told["anna"]["state"], told["anna"]["reply"]) == ("sent", None)
    assert [row["line"] for row in engine.export(campaign)] == [2, 3, 4, 5]


def test_who_cannot_be_reached_in_time_is_given_up(hasty: House) -> None:
    """Deferred again and again, until `give_up_s`: failed, with the last reply kept."""
    engine, _ = hasty
    campaign = engine.send("late", ["defer@late.example.org", "anna@late.example.org"], keys="give_up_s = 3")
    account = engine.finished(campaign)
    assert (account["sent"], account["failed"]) == (1, 1)
    (told,) = [row for row in engine.export(campaign) if row["state"] == "failed"]
    assert (told["code"], told["enhanced"]) == (450, "4.2.1")
    assert told["attempts"] >= 3


def test_a_line_break_in_a_header_is_refused_before_anything_is_sent(hasty: House) -> None:
    """A field that would break the subject's line: the launch names it, exit 2, and the campaign is a draft again."""
    engine, relay = hasty
    people = [dict(PEOPLE[0], email=f"user{n}@lines.example.org") for n in range(3)]
    people[1]["first_name"] = "Ann\r\nBcc: victim@example.com"
    with pytest.raises(EcmError) as refused:
        engine.ask("campaign.send", request(engine, "lines", people))
    assert refused.value.exit == 2
    assert engine.ask("campaign.show", {"campaign": "lines"})["state"] == "draft"
    assert not arrivals(relay, "lines")


def test_a_sink_with_chance_gets_everybody_it_does_not_bounce(sink: StartSink, instance: StartInstance) -> None:
    """A third deferred, a tenth bounced by chance: the account and the sink's own counts agree."""
    relay = sink("--defer", "0.3", "--bounce", "0.1", keep=True)
    engine = instance(relay, "[retry]\nfirst_s = 1\nmax_s = 1\n")
    engine.start()
    campaign = engine.send("chance", 3000)
    account = engine.finished(campaign)
    counts = relay.counts()
    assert (account["sent"], account["bounced"]) == (counts["messages"], counts["bounced"])
    assert account["sent"] + account["bounced"] == 3000
    assert account["attempts"] == 3000 + counts["deferred"]
    assert counts["duplicates"] == 0
    engine.stop()
