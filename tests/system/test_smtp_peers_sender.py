"""A real sender process against real servers: what each server says it took is what the ledger says was sent.

In every test the server's own count of accepted messages equals SENT plus what is UNCERTAIN, person by person.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from actors.smtp.transaction import Mode
from shm.files.ledger import States
from shm.live.relays import RelayState

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.aiosmtpd_peer import RunningAiosmtpd
    from tests.fixtures.exim import RunningExim
    from tests.fixtures.liar import Lie, StartLiar
    from tests.fixtures.lone_sender import LoneSender, StartLone
    from tests.fixtures.opensmtpd import RunningOpenSmtpd
    from tests.fixtures.postfix import RunningPostfix
    from tests.fixtures.smtp_sink import StartSmtpSink

pytest_plugins = [
    "tests.fixtures.lone_sender",
    "tests.fixtures.postfix",
    "tests.fixtures.smtp_sink",
    "tests.fixtures.exim",
    "tests.fixtures.opensmtpd",
    "tests.fixtures.aiosmtpd_peer",
    "tests.fixtures.liar",
]

ROW = 1  # the sender's, in every table
SENDER = "news@example.com"
KINDS = {"bounce": States.BOUNCED, "defer": States.DEFERRED, "drop": States.DEFERRED}


def place(host: str, port: int) -> SimpleNamespace:
    return SimpleNamespace(host=host, port=port)


def audience(count: int, domain: str, **refused: int) -> list[str]:
    """`count` people at `domain`; every n-th one is at a domain below it, refused as `refused` says: {bounce: 7}."""
    people = []
    for number in range(count):
        kind = next((kind for kind, each in refused.items() if number % each == each - 1), None)
        people.append(f"{kind}@d{number}.{domain}" if kind else f"user{number}@{domain}")
    return people


def sent_to(lone: LoneSender, campaign: int = 7) -> list[str]:
    """Whom the ledger says the relay has the message for: SENT, and nobody is in doubt."""
    rows = lone.rows(campaign)
    assert not [row for row in rows if row.state in (States.UNCERTAIN, States.SENDING, States.CLAIMED)]
    return sorted(to for to, row in zip(lone.addresses(campaign), rows, strict=True) if row.state is States.SENT)


def everybody_as_asked(lone: LoneSender, people: list[str], campaign: int = 7) -> None:
    """Each person's state is the one that the relay's answer to the address means."""
    for to, row in zip(people, lone.rows(campaign), strict=True):
        assert row.state is KINDS.get(to.partition("@")[0], States.SENT), to


def mode_spoken(lone: LoneSender) -> Mode:
    return Mode(lone.relays.use(ROW, 0).mode)


@pytest.mark.parametrize(
    ("port", "more", "mode"),
    [
        ("port", {}, Mode.BDAT),
        ("port", {"tls": "required"}, Mode.BDAT),
        ("port", {"tls": "required", "username": "user@example.com", "password": "secret"}, Mode.BDAT),
        ("tls_port", {"tls": "implicit"}, Mode.BDAT),
        ("strict_port", {}, Mode.BDAT),
        ("groups_port", {}, Mode.PIPELINING),
        ("groups_port", {"tls": "required"}, Mode.PIPELINING),
        ("lockstep_port", {}, Mode.LOCKSTEP),
    ],
    ids=["bdat", "starttls", "login", "implicit", "strict", "groups", "groups-tls", "lockstep"],
)
def test_postfix_has_what_the_ledger_says(
    request: pytest.FixtureRequest, postfix: RunningPostfix, lone_sender: StartLone,
    port: str, more: dict[str, Any], mode: Mode,
) -> None:  # fmt: skip
    """Refused and deferred recipients in the middle of every window; each message once, under its own sender."""
    if more.get("tls"):
        more = {"ca_file": str(postfix.ca_file), **more}
    domain = f"{request.node.callspec.id}.example.org"
    people = audience(300, domain, bounce=7, defer=11)
    lone = lone_sender(place(postfix.host, getattr(postfix, port)), connections=3, **more)
    lone.campaign(7, people)
    counts = lone.wait_done(lone.offer(7))
    assert counts.attempts == len(people)
    everybody_as_asked(lone, people)
    sent = sent_to(lone)
    assert sorted(postfix.delivered(domain, count=len(sent))) == [(SENDER, to) for to in sent]
    assert mode_spoken(lone) is mode


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name.lower())
def test_postfix_is_spoken_to_no_better_than_the_broker_allows(
    postfix: RunningPostfix, lone_sender: StartLone, mode: Mode
) -> None:
    """The mode's ceiling in the arena holds, whatever the relay announces."""
    domain = f"ceiling-{mode.name.lower()}.example.org"
    lone = lone_sender(postfix)
    lone.relays.allow(ROW, 0, 4, RelayState.UP, mode)
    lone.campaign(7, audience(60, domain))
    assert lone.wait_done(lone.offer(7)).sent == 60
    assert [to for _, to in sorted(postfix.delivered(domain, count=60))] == sent_to(lone)
    assert mode_spoken(lone) is mode


@pytest.mark.parametrize("port", ["port", "groups_port", "lockstep_port"])
def test_postfix_hanging_up_in_mid_window_costs_one_person_their_turn(
    postfix: RunningPostfix, lone_sender: StartLone, port: str
) -> None:
    """421 to a recipient and the end of the connection: that one waits, those behind it are sent on another one."""
    domain = f"hang-up-{port.partition('_')[0]}.example.org"
    people = audience(100, domain, drop=25)
    lone = lone_sender(place(postfix.host, getattr(postfix, port)), connections=2)
    lone.campaign(7, people)
    lone.wait_done(lone.offer(7))
    everybody_as_asked(lone, people)
    sent = sent_to(lone)
    assert len(sent) == 96
    assert sorted(postfix.delivered(domain, count=len(sent))) == [(SENDER, to) for to in sent]


def test_exim_has_what_the_ledger_says(exim: RunningExim, lone_sender: StartLone) -> None:
    """Windows of BDAT with refused recipients in them; Exim's log names each person once."""
    people = audience(120, "sender.example.org", bounce=7, defer=11)
    before = len(exim.accepted(count=0))
    lone = lone_sender(exim, connections=2)
    lone.campaign(7, people)
    lone.wait_done(lone.offer(7))
    everybody_as_asked(lone, people)
    sent = sent_to(lone)
    taken = exim.accepted(count=before + len(sent))[before:]
    assert sorted((one.mail, one.rcpt) for one in taken) == [(SENDER, to) for to in sent]
    assert mode_spoken(lone) is Mode.BDAT


def test_exim_losing_patience_with_refusals_leaves_nobody_in_doubt(exim: RunningExim, lone_sender: StartLone) -> None:
    """It hangs up at the eleventh RSET behind a refused recipient; one connection after the other leaves before."""
    people = audience(120, "patience.example.org", bounce=4)
    before = len(exim.accepted(count=0))
    lone = lone_sender(exim, connections=1)
    lone.campaign(7, people, uncertain="hold")
    counts = lone.wait_done(lone.offer(7))
    assert (counts.sent, counts.bounced, counts.uncertain, counts.attempts) == (90, 30, 0, 120)
    assert sorted(one.rcpt for one in exim.accepted(count=before + 90)[before:]) == sent_to(lone)


def test_opensmtpd_has_what_the_ledger_says(opensmtpd: RunningOpenSmtpd, lone_sender: StartLone) -> None:
    """It takes nothing ahead of its replies: lock-step, and every message arrives."""
    people = [*audience(80, "sender.example.org"), "bounce@example.com"]
    before = opensmtpd.accepted(count=0)
    lone = lone_sender(opensmtpd, connections=2)
    lone.campaign(7, people)
    counts = lone.wait_done(lone.offer(7))
    everybody_as_asked(lone, people)
    assert counts.attempts == len(people)
    assert opensmtpd.accepted(count=before + 80) - before == len(sent_to(lone)) == 80
    assert mode_spoken(lone) is Mode.LOCKSTEP


def test_aiosmtpd_has_what_the_ledger_says(aiosmtpd_peer: RunningAiosmtpd, lone_sender: StartLone) -> None:
    """A server in Python, lock-step."""
    people = audience(150, "sender.example.org", bounce=7, defer=11)
    lone = lone_sender(aiosmtpd_peer, connections=3)
    lone.campaign(7, people)
    lone.wait_done(lone.offer(7))
    everybody_as_asked(lone, people)
    assert sorted((mail, rcpt) for mail, rcpt, _ in aiosmtpd_peer.accepted) == [(SENDER, to) for to in sent_to(lone)]
    assert mode_spoken(lone) is Mode.LOCKSTEP


@pytest.mark.parametrize("options", [(), ("-p",), ("-e",)], ids=["pipelining", "lockstep", "helo"])
def test_smtp_sink_has_what_the_ledger_says(
    smtp_sink: StartSmtpSink, lone_sender: StartLone, options: tuple[str, ...]
) -> None:
    """Groups with PIPELINING, lock-step without, HELO where EHLO is unknown."""
    peer = smtp_sink(*options)
    lone = lone_sender(peer, connections=4)
    lone.campaign(7, audience(400, "sender.example.org"))
    assert lone.wait_done(lone.offer(7)).sent == 400
    assert sorted(one.rcpt.strip("<>") for one in peer.messages()) == sent_to(lone)
    assert mode_spoken(lone) is (Mode.LOCKSTEP if options else Mode.PIPELINING)


@pytest.mark.parametrize(
    ("lie", "mode"),
    [
        ("drop", Mode.LOCKSTEP),
        ("drop bdat", Mode.LOCKSTEP),
        ("500", Mode.LOCKSTEP),
        ("no bdat", Mode.PIPELINING),
    ],
)
def test_a_relay_that_promised_too_much_is_stepped_down_and_gets_everything_once(
    liar: StartLiar, lone_sender: StartLone, lie: Lie, mode: Mode
) -> None:
    """PIPELINING or CHUNKING announced and not meant: a lower mode does it, nobody is lost, nobody gets it twice."""
    relay = liar(lie)
    lone = lone_sender(relay, connections=1, timeouts={"command": 0.5, "body": 0.5})
    lone.campaign(7, audience(20, "sender.example.org"), retry={"first_s": 1, "max_s": 1})
    counts = lone.wait_done(lone.offer(7))
    for _ in range(5):
        if counts.sent == 20:
            break
        lone.wait(lambda due_s=counts.next_attempt_s: due_s <= lone.clock.now_s(), "the next attempts to be due")
        counts = lone.wait_done(lone.offer(7))
    assert Counter(relay.taken) == Counter(lone.addresses(7))
    assert sorted(relay.taken) == sent_to(lone)
    assert mode_spoken(lone) is mode
