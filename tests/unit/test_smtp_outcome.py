"""What becomes of recipients and connections: the table is complete, and every rule stands on a real reply."""

from __future__ import annotations

import pytest

from actors.smtp.outcome import CONCLUDES, DUE_NOW_ATTEMPTS_MAX, OUTCOMES, STAGES, Connection, Outcome, decide
from actors.smtp.reply import read_text
from actors.smtp.rules import RULES, About, rule_of
from actors.smtp.transaction import Concluded, Event, Mode, Stage
from broker.contract.settings import RETRY_CLASSES
from shm.files.ledger import States

SEEMS_DROPPED = {  # no answer to what was pipelined behind an answered command
    (Stage.RCPT, Event.TIMEOUT_BEFORE),
    (Stage.DATA, Event.TIMEOUT_BEFORE),
    (Stage.MAIL, Event.TIMEOUT_AFTER),
    (Stage.RCPT, Event.TIMEOUT_AFTER),
}
CONCLUDE_NOTHING = {(Stage.MAIL, Event.OK), (Stage.RCPT, Event.OK)}


def verdict(stage: Stage, text: str, attempts: int = 1) -> Outcome:
    """The outcome of a reply at a stage."""
    reply = read_text(text)
    event = (
        Event.CLOSING
        if reply.code == 421
        else Event.BAD_SEQUENCE
        if reply.code == 503
        else Event.PERMANENT
        if reply.code >= 500
        else Event.TRANSIENT
    )
    return decide(Concluded(1, stage, reply, event), attempts)


# What must become of a message, in words: recipient and connection. One line an event, a word a stage.
_BY_DATA = """
event           MAIL              RCPT              DATA              BODY
2xx             -                 -                 deferred/step     sent/keep
4xx             deferred/keep     deferred/keep     deferred/keep     deferred/keep
5xx             deferred/keep     bounced/keep      bounced/keep      bounced/keep
503             deferred/step     deferred/step     deferred/step     deferred/step
3xx             deferred/step     deferred/step     deferred/step     uncertain/step
421             deferred/close    deferred/close    deferred/close    deferred/close
lost_before     deferred/close    deferred/close    deferred/close    -
lost_after      -                 -                 -                 uncertain/close
timeout_before  deferred/close    deferred/step     deferred/step     -
timeout_after   -                 -                 -                 uncertain/close
garbage_before  deferred/step     deferred/step     deferred/step     -
garbage_after   -                 -                 -                 uncertain/step
"""
_BY_BDAT = """
event           MAIL              RCPT              BODY
2xx             -                 -                 sent/keep
4xx             deferred/keep     deferred/keep     deferred/keep
5xx             deferred/keep     bounced/keep      bounced/keep
503             deferred/step     deferred/step     deferred/step
3xx             -                 -                 -
421             deferred/close    deferred/close    deferred/close
lost_before     deferred/close    -                 -
lost_after      uncertain/close   uncertain/close   uncertain/close
timeout_before  deferred/close    -                 -
timeout_after   uncertain/step    uncertain/step    uncertain/close
garbage_before  -                 -                 -
garbage_after   uncertain/step    uncertain/step    uncertain/step
"""


def _cells(text: str) -> dict[tuple[Stage, Event], str]:
    head, *lines = (line.split() for line in text.strip().splitlines())
    return {
        (Stage[stage], Event(event)): word
        for event, *words in lines
        for stage, word in zip(head[1:], words, strict=True)
        if word != "-"
    }


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name.lower())
def test_everything_that_can_conclude_a_message_comes_out_as_it_must(mode: Mode) -> None:
    """Every (mode, stage, event), and no other: the recipient and the connection, for a reply without a rule."""
    must = _cells(_BY_BDAT if mode is Mode.BDAT else _BY_DATA)
    assert {(stage, event) for stage, events in CONCLUDES[mode].items() for event in events} == set(must)
    for (stage, event), word in must.items():
        reply = None if "_" in event else read_text(f"{event.value[:3].replace('x', '0')} whatever")
        outcome = decide(Concluded(1, stage, reply, event))
        action = {"keep": Connection.KEEP, "close": Connection.CLOSE, "step": Connection.STEP_DOWN}
        state, then = word.split("/")
        assert (outcome.state, outcome.action) == (States[state.upper()], action[then]), (stage, event)


def test_the_table_has_a_cell_for_every_stage_and_event() -> None:
    """Whatever a mode reports it is judged; but a 2xx to MAIL or RCPT concludes nothing."""
    assert set(OUTCOMES) == {(stage, event) for stage in STAGES for event in Event} - CONCLUDE_NOTHING


@pytest.mark.parametrize(("stage", "event"), OUTCOMES, ids=lambda part: getattr(part, "name", part))
def test_every_cell_keeps_the_laws_of_accounting(stage: Stage, event: Event) -> None:
    """SENT for a 2xx to the body alone; BOUNCED for a 5xx after MAIL alone; UNCERTAIN exactly when nobody can know."""
    state, action = OUTCOMES[stage, event]
    assert (state is States.SENT) == (event is Event.OK and stage is Stage.BODY)
    assert (state is States.BOUNCED) == (event is Event.PERMANENT and stage is not Stage.MAIL)
    unknowable = event.endswith("_after") or (event is Event.INTERMEDIATE and stage is Stage.BODY)
    assert (state is States.UNCERTAIN) == unknowable
    assert (action is Connection.KEEP) == (state is States.SENT or event in (Event.TRANSIENT, Event.PERMANENT))
    lost_step = event in (Event.BAD_SEQUENCE, Event.INTERMEDIATE) or event.startswith("garbage")
    lost_step |= (stage, event) in {(Stage.DATA, Event.OK), *SEEMS_DROPPED}
    assert (action is Connection.STEP_DOWN) == lost_step


@pytest.mark.parametrize(("stage", "event"), OUTCOMES, ids=lambda part: getattr(part, "name", part))
def test_only_what_says_nothing_about_the_recipient_is_due_at_once(stage: Stage, event: Event) -> None:
    """Lost before the body, out of step, or a goodbye to MAIL; and never more than a few times in a row."""
    reply = None if "_" in event else read_text(f"{event.value[:3].replace('x', '0')} whatever")
    first = decide(Concluded(1, stage, reply, event))
    says_nothing = event.endswith("_before") or event in (Event.BAD_SEQUENCE, Event.INTERMEDIATE)
    says_nothing |= (stage, event) in {(Stage.DATA, Event.OK), (Stage.MAIL, Event.CLOSING)}
    assert first.due_now == (says_nothing and first.state is States.DEFERRED)
    assert not decide(Concluded(1, stage, reply, event), DUE_NOW_ATTEMPTS_MAX).due_now


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.about}-{rule.example[:40]}")
def test_every_rule_meets_its_own_example_first(rule: object) -> None:
    """The reply that prompted a rule is decided by that rule, not by an earlier one."""
    found = rule_of(read_text(rule.example))  # type: ignore[attr-defined]
    assert found is rule


def test_classes_are_those_that_the_settings_know() -> None:
    """Every class a deferral can have may have times of its own under [retry]."""
    assert {about.value for about in About} - {"none", "step"} == set(RETRY_CLASSES)


@pytest.mark.parametrize(
    ("stage", "text", "state", "blame"),
    [
        # about the recipient
        (Stage.RCPT, "550 5.1.1 <anna@example.org>: User unknown", States.BOUNCED, "recipient"),
        (Stage.RCPT, "550 nothing we know", States.BOUNCED, "recipient"),
        (Stage.RCPT, "450 4.2.0 Greylisted, come back in 5 minutes", States.DEFERRED, "greylisting"),
        (Stage.RCPT, "552 5.2.2 Mailbox full", States.BOUNCED, "mailbox_full"),
        (Stage.BODY, "452 4.2.2 The recipient's inbox is out of storage space", States.DEFERRED, "mailbox_full"),
        (Stage.BODY, "550 nothing we know", States.BOUNCED, "other"),
        (Stage.BODY, "451 nothing we know", States.DEFERRED, "other"),
        # about us: never charged to the recipient
        (Stage.MAIL, "550 5.1.1 nothing else known", States.DEFERRED, "sender"),
        (Stage.MAIL, "530 5.7.0 Authentication required", States.DEFERRED, "sender"),
        (Stage.RCPT, "554 5.7.1 <anna@example.org>: Relay access denied", States.DEFERRED, "sender"),
        (Stage.RCPT, "554 5.7.1 Client host [192.0.2.1] blocked using zen.spamhaus.org", States.DEFERRED, "sender"),
        (Stage.BODY, "550-5.7.26 This mail has been blocked\n550 5.7.26 unauthenticated", States.DEFERRED, "sender"),
        (Stage.BODY, "454 Throttling failure: Daily message quota exceeded.", States.DEFERRED, "sender"),
        (Stage.BODY, "454 Throttling failure: Maximum sending rate exceeded.", States.DEFERRED, "throttling"),
        (Stage.BODY, "550 5.7.1 Sending rate exceeded, slow down", States.DEFERRED, "throttling"),
        (Stage.MAIL, "421 4.7.0 Error: too many connections from 192.0.2.1", States.DEFERRED, "throttling"),
        # what the large providers say
        (
            Stage.BODY,
            "421-4.7.0 suspicious due to the very low reputation of the\n421 4.7.0 sending domain",
            States.DEFERRED,
            "sender",
        ),
        (Stage.BODY, "421 4.7.28 Gmail has detected an unusual rate of email", States.DEFERRED, "throttling"),
        (
            Stage.BODY,
            "550-5.7.1 Gmail has detected that this message is\n550 5.7.1 likely unsolicited mail",
            States.DEFERRED,
            "sender",
        ),
        (
            Stage.RCPT,
            "452 4.2.2 The email account that you tried to reach is over quota",
            States.DEFERRED,
            "mailbox_full",
        ),
        (
            Stage.RCPT,
            "550 5.2.1 The user you are trying to contact is receiving mail at a rate that",
            States.DEFERRED,
            "throttling",
        ),
        (Stage.BODY, "550 5.4.5 Daily user sending quota exceeded", States.DEFERRED, "sender"),
        (Stage.BODY, "550 5.7.515 Access denied, sending domain example.com does not meet", States.DEFERRED, "sender"),
        (
            Stage.MAIL,
            "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation",
            States.DEFERRED,
            "throttling",
        ),
        (
            Stage.MAIL,
            "550 5.7.1 Unfortunately, messages weren't sent since part of their network is on our block list (S3140)",
            States.DEFERRED,
            "sender",
        ),
        (Stage.RCPT, "550 5.7.511 Access denied, banned sender[192.0.2.1]", States.DEFERRED, "sender"),
        (
            Stage.MAIL,
            "553 5.7.1 [BL21] Connections will not be accepted, because the ip is in Spamhaus's list",
            States.DEFERRED,
            "sender",
        ),
        (
            Stage.MAIL,
            "421 4.7.0 [TSS04] Messages from 192.0.2.1 deferred due to unexpected volume or user complaints",
            States.DEFERRED,
            "throttling",
        ),
        (
            Stage.BODY,
            "550 5.7.1 [CS01] Message rejected due to local policy. Please visit https://support.apple.com/",
            States.DEFERRED,
            "sender",
        ),
        (
            Stage.RCPT,
            "553 5.7.1 <news@example.com>: Sender address rejected: not owned by user me",
            States.DEFERRED,
            "sender",
        ),
        # a name is not a reason
        (Stage.RCPT, "550 5.1.1 <spam@greylist.example>: User unknown", States.BOUNCED, "recipient"),
        (Stage.RCPT, "550 spamhaus@blocklist.example is not known here", States.BOUNCED, "recipient"),
    ],
)
def test_a_reply_is_charged_to_whom_it_is_about(stage: Stage, text: str, state: States, blame: str) -> None:
    """Digits say how long, words say who: a refusal of us never bounces a person."""
    outcome = verdict(stage, text)
    assert (outcome.state, outcome.blame) == (state, blame)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "text",
    [
        "503 5.5.1 Error: need MAIL command",
        "554 5.5.0 Error: SMTP protocol synchronization",
        "554 SMTP synchronization error",
        "500 5.5.1 Invalid command: Pipelining not supported",
    ],
)
def test_lost_step_is_transient_whatever_the_first_digit(stage: Stage, text: str) -> None:
    """The ends lost step: the recipient is tried again at once, the connection goes on one mode lower."""
    assert verdict(stage, text) == Outcome(States.DEFERRED, Connection.STEP_DOWN, About.OTHER, True)
    assert not verdict(stage, text, DUE_NOW_ATTEMPTS_MAX).due_now


def test_a_relay_that_is_too_busy_is_not_tried_again_at_once() -> None:
    """421 to MAIL alone is the end of a connection; with a reason it is a reason to wait."""
    assert verdict(Stage.MAIL, "421 4.4.2 closing").due_now
    assert not verdict(Stage.MAIL, "421 4.7.0 Error: too many connections from 192.0.2.1").due_now


def test_an_accepted_message_is_judged_without_looking_at_its_text() -> None:
    """`250 ... spam` is accepted all the same."""
    concluded = Concluded(1, Stage.BODY, read_text("250 2.0.0 Ok: spam queued"), Event.OK)
    assert decide(concluded) == Outcome(States.SENT, Connection.KEEP, About.NONE, False)
