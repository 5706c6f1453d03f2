"""Transactions against a scripted relay: every case whole and byte by byte, pipelined and in lock-step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.smtp.outcome import OUTCOMES, decide
from actors.smtp.transaction import Concluded, Event, Mode, Stage, Transactions
from shm.files.ledger import States
from tests.fixtures.scripted_relay import CLOSE, Message, Script, ScriptedRelay, drive

all_modes = pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name.lower())
both_modes = pytest.mark.parametrize("mode", [Mode.LOCKSTEP, Mode.PIPELINING], ids=lambda mode: mode.name.lower())
whole_and_cut = pytest.mark.parametrize("cut", [0, 1, 7], ids=["whole", "bytewise", "by-seven"])

THREE = [Message(rcpt=b"one@example.org"), Message(rcpt=b"two@example.org"), Message(rcpt=b"three@example.org")]
SENT = ("BODY", "2xx")


@all_modes
@whole_and_cut
def test_every_message_is_accepted_once_and_in_order(mode: Mode, cut: int) -> None:
    """An honest relay gets each message once, under its own envelope, and each is concluded in order."""
    relay = ScriptedRelay()
    run = drive(Transactions(mode), relay, THREE, cut=cut)
    assert run.by_number() == {1: SENT, 2: SENT, 3: SENT}
    assert [number for number, *_ in relay.accepted] == [1, 2, 3]
    assert [rcpt for _, _, rcpt, _ in relay.accepted] == [m.rcpt for m in THREE]
    assert str(run.concluded[0].reply) == "250 2.0.0 Ok: queued"


CASES: dict[str, tuple[Script, tuple[str, str], list[int]]] = {
    # name: (script, what becomes of message 2, numbers the relay accepted)
    "rcpt refused, DATA echoes 554": ({(2, "RCPT"): b"550 5.1.1 nobody"}, ("RCPT", "5xx"), [1, 3]),
    "rcpt deferred, DATA echoes 503": (
        {(2, "RCPT"): b"450 4.2.1 later", (2, "DATA"): b"503 5.5.1 need RCPT"},
        ("RCPT", "4xx"),
        [1, 3],
    ),
    "rcpt refused, DATA echoes in two lines": (
        {(2, "RCPT"): b"550 5.1.1 nobody", (2, "DATA"): b"503-All RCPT commands were rejected\r\n503 really"},
        ("RCPT", "5xx"),
        [1, 3],
    ),
    "mail refused, the others echo": ({(2, "MAIL"): b"550 5.7.1 not you"}, ("MAIL", "5xx"), [1, 3]),
    "mail deferred, the others echo": ({(2, "MAIL"): b"452 4.3.1 full"}, ("MAIL", "4xx"), [1, 3]),
    "data refused": ({(2, "DATA"): b"451 4.3.0 later"}, ("DATA", "4xx"), [1, 3]),
    "data refused for good": ({(2, "DATA"): b"554 5.7.1 no"}, ("DATA", "5xx"), [1, 3]),
    "body deferred": ({(2, "BODY"): b"452 4.2.2 full"}, ("BODY", "4xx"), [1, 3]),
    "body refused": ({(2, "BODY"): b"554-5.7.1 spam\r\n554 5.7.1 go away"}, ("BODY", "5xx"), [1, 3]),
    "bad sequence at MAIL": ({(2, "MAIL"): b"503 5.5.1 nested"}, ("MAIL", "503"), [1, 3]),
    "bad sequence at RCPT": ({(2, "RCPT"): b"503 5.5.1 nested"}, ("RCPT", "503"), [1, 3]),
    "bad sequence at DATA": ({(2, "DATA"): b"503 5.5.1 nested"}, ("DATA", "503"), [1, 3]),
    "251 is as good as 250": ({(2, "RCPT"): b"251 will forward"}, SENT, [1, 2, 3]),
    "replies without text": (
        {(2, "MAIL"): b"250", (2, "RCPT"): b"250", (2, "DATA"): b"354", (2, "BODY"): b"250"},
        SENT,
        [1, 2, 3],
    ),
    "replies of several lines": (
        {
            (2, "MAIL"): b"250-2.1.0 a\r\n250 2.1.0 b",
            (2, "RCPT"): b"250-2.1.5 a\r\n250-2.1.5 b\r\n250 2.1.5 c",
            (2, "DATA"): b"354-go\r\n354 on",
            (2, "BODY"): b"250- 42 byte chunk\r\n250 OK id=1",
        },
        SENT,
        [1, 2, 3],
    ),
}


@pytest.mark.parametrize("name", CASES)
@both_modes
@whole_and_cut
def test_a_refusal_concerns_its_own_message_only(mode: Mode, cut: int, name: str) -> None:
    """Message 2 gets its first refusal as the cause; its neighbours are sent, and the relay agrees."""
    script, expected, accepted = CASES[name]
    relay = ScriptedRelay(script)
    run = drive(Transactions(mode), relay, THREE, cut=cut)
    assert run.by_number() == {1: SENT, 2: expected, 3: SENT}
    assert [number for number, *_ in relay.accepted] == accepted


@whole_and_cut
@pytest.mark.parametrize("last", [b"554 5.5.1 no valid recipients", b"250 2.0.0 thanks for nothing"])
def test_an_allowed_data_after_a_refused_recipient_is_ended_with_an_empty_message(cut: int, last: bytes) -> None:
    """RCPT refused but DATA answered 354: "." alone ends it, and whatever is said to that is not the cause."""
    relay = ScriptedRelay({(2, "RCPT"): b"550 5.1.1 nobody", (2, "DATA"): b"354 go on then", (2, "BODY"): last})
    run = drive(Transactions(Mode.PIPELINING), relay, THREE, cut=cut)
    assert run.by_number() == {1: SENT, 2: ("RCPT", "5xx"), 3: SENT}
    assert relay.empty == [2]
    assert [number for number, *_ in relay.accepted] == [1, 3]


def test_pipelining_costs_one_round_trip_a_message_and_keeps_two_in_flight_at_most() -> None:
    """Ten messages take eleven groups: MAIL RCPT DATA first, then body . MAIL RCPT DATA each."""
    relay = ScriptedRelay()
    run = drive(Transactions(Mode.PIPELINING), relay, [Message()] * 10)
    assert relay.groups == [3, *[4] * 9, 1]
    assert run.in_flight_most == 2


def test_lockstep_writes_one_command_at_a_time() -> None:
    """Without PIPELINING nothing is written before the last command's reply has come."""
    relay = ScriptedRelay({(1, "RCPT"): b"550 5.1.1 nobody"})
    run = drive(Transactions(Mode.LOCKSTEP), relay, THREE)
    assert set(relay.groups) == {1}
    assert run.in_flight_most == 1


@both_modes
def test_a_transaction_left_open_is_reset_before_the_next(mode: Mode) -> None:
    """After a refused recipient the server may hold the sender (Exim): RSET comes before the next MAIL."""
    relay = ScriptedRelay({(1, "RCPT"): b"550 5.1.1 nobody"})
    drive(Transactions(mode), relay, THREE[:2])
    assert relay.heard[relay.heard.index("RSET") + 1] == "MAIL"
    refused = ScriptedRelay({(1, "MAIL"): b"550 5.7.1 not you"})
    drive(Transactions(mode), refused, THREE[:2])
    assert "RSET" not in refused.heard


STAGES = ["MAIL", "RCPT", "DATA", "BODY"]


@pytest.mark.parametrize("stage", STAGES)
@both_modes
@whole_and_cut
def test_421_concludes_its_message_and_ends_the_connection(mode: Mode, cut: int, stage: str) -> None:
    """After 421 nothing more is submitted; the message behind it was not handed over."""
    relay = ScriptedRelay({(2, stage): (b"421 4.3.2 closing", CLOSE)})
    client = Transactions(mode)
    run = drive(client, relay, THREE, cut=cut)
    assert run.by_number()[2] == (stage, "421")
    assert run.by_number().get(3, ("MAIL", "lost_before")) == ("MAIL", "lost_before")
    assert client.closing
    assert client.room() == 0
    assert client.quit() == b""
    assert [number for number, *_ in relay.accepted] == [1]


@both_modes
@whole_and_cut
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("why", ["lost", "timeout"])
def test_a_silent_end_is_uncertain_only_after_the_body(mode: Mode, cut: int, stage: str, why: str) -> None:
    """A connection lost (or out of time) before the body left proves that nothing was accepted; after it, nothing."""
    relay = ScriptedRelay({(2, stage): CLOSE})
    run = drive(Transactions(mode), relay, THREE, cut=cut, why=why)
    assert run.by_number()[2] == (stage, f"{why}_after" if stage == "BODY" else f"{why}_before")
    assert run.by_number().get(3, ("MAIL", f"{why}_before")) == ("MAIL", f"{why}_before")


@whole_and_cut
def test_a_loss_after_the_first_refusal_keeps_the_refusal(cut: int) -> None:
    """The recipient was refused before the line broke: that is known, and stays known."""
    relay = ScriptedRelay({(1, "RCPT"): b"550 5.1.1 nobody", (1, "DATA"): CLOSE})
    run = drive(Transactions(Mode.PIPELINING), relay, THREE[:1], cut=cut)
    assert run.by_number() == {1: ("RCPT", "5xx")}


@both_modes
@whole_and_cut
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("noise", [b"hello", b"25", b"999 what", b"\x16\x03\x01\x02", b"250-one\r\n251 two"])
def test_garbage_ends_the_connection_and_concludes_everything(mode: Mode, cut: int, stage: str, noise: bytes) -> None:
    """What is no reply breaks the count: message 2 is uncertain if its body had left, and nothing else is believed."""
    relay = ScriptedRelay({(2, stage): noise})
    client = Transactions(mode)
    run = drive(client, relay, THREE, cut=cut)
    assert run.by_number()[1] == SENT
    assert run.by_number()[2] == (stage, "garbage_after" if stage == "BODY" else "garbage_before")
    assert run.by_number().get(3, ("MAIL", "garbage_before")) == ("MAIL", "garbage_before")
    assert client.fault is not None
    assert client.receive(b"250 2.0.0 Ok\r\n") == ([], b"")


@both_modes
@whole_and_cut
@pytest.mark.parametrize(
    ("stage", "reply"), [("MAIL", b"354 go"), ("RCPT", b"334 x"), ("DATA", b"334 x"), ("BODY", b"354 go")]
)
def test_an_unexpected_3xx_ends_the_connection(mode: Mode, cut: int, stage: str, reply: bytes) -> None:
    """After a 3xx out of place nobody knows whether the server takes commands or text."""
    relay = ScriptedRelay({(2, stage): reply})
    client = Transactions(mode)
    run = drive(client, relay, THREE, cut=cut)
    assert run.by_number()[2] == (stage, "3xx")
    assert client.fault is not None


@whole_and_cut
def test_a_reply_too_many_is_caught_by_the_354_that_does_not_come(cut: int) -> None:
    """An extra 250 shifts every later reply by one; DATA notices, before any body is handed over."""
    relay = ScriptedRelay({(1, "BODY"): b"250 ok\r\n250 ok again"})
    client = Transactions(Mode.PIPELINING)
    run = drive(client, relay, THREE, cut=cut)
    assert run.by_number() == {1: SENT, 2: ("DATA", "2xx")}
    assert client.fault == "unexpected reply to DATA: 250 2.1.5 Ok"
    assert [number for number, *_ in relay.accepted] == [1]


def test_a_reply_ahead_of_its_body_is_not_believed() -> None:
    """354 and 250 in one piece: the 250 answers nothing we said, so the body stays here."""
    client = Transactions(Mode.PIPELINING)
    client.submit(1, b"a@example.com", b"b@example.com", b"x\r\n")
    concluded, out = client.receive(b"250 ok\r\n250 ok\r\n354 go\r\n250 queued\r\n")
    assert concluded == [Concluded(1, Stage.DATA, None, Event.GARBAGE_BEFORE)]
    assert out == b""
    assert client.fault == "a reply nobody asked for: 250 queued"


def test_the_beginning_of_an_early_reply_holds_the_body_back() -> None:
    """As long as something follows the 354 the body waits: it is not handed over to a server that goes on talking."""
    client = Transactions(Mode.PIPELINING)
    client.submit(1, b"a@example.com", b"b@example.com", b"x\r\n")
    assert client.receive(b"250 ok\r\n250 ok\r\n354 go\r\n25") == ([], b"")
    assert client.room() == 0
    assert client.receive(b"0 queued\r\n")[0] == [Concluded(1, Stage.DATA, None, Event.GARBAGE_BEFORE)]


@pytest.mark.parametrize(
    ("early", "event"), [(b"550 5.7.1 no", "5xx"), (b"450 4.7.1 later", "4xx"), (b"421 4.3.2 bye", "421")]
)
def test_a_refusal_ahead_of_the_body_is_the_answer_to_it(early: bytes, event: str) -> None:
    """A server may refuse right after 354 (smtp-sink -A): the message is refused, and the connection ends."""
    client = Transactions(Mode.PIPELINING)
    client.submit(1, b"a@example.com", b"b@example.com", b"x\r\n")
    (concluded,), out = client.receive(b"250 ok\r\n250 ok\r\n354 go\r\n" + early + b"\r\n")
    assert (concluded.stage, concluded.event, str(concluded.reply)) == (Stage.BODY, event, early.decode())
    assert out == b""
    assert client.closing


def test_an_early_reply_in_lockstep_is_not_believed() -> None:
    """Two replies to one command: the second cannot be about RCPT, which was not said yet."""
    client = Transactions(Mode.LOCKSTEP)
    client.submit(1, b"a@example.com", b"b@example.com", b"x\r\n")
    assert client.receive(b"250 ok\r\n250 ok\r\n") == ([Concluded(1, Stage.RCPT, None, Event.GARBAGE_BEFORE)], b"")


@all_modes
def test_a_reply_while_nothing_is_in_flight_ends_the_connection(mode: Mode) -> None:
    """A goodbye is understood; anything else is a fault. Neither concludes anything."""
    client = Transactions(mode)
    assert client.receive(b"421 4.4.2 idle for too long\r\n") == ([], b"")
    assert (client.closing, client.fault) == (True, None)
    client = Transactions(mode)
    assert client.receive(b"250 surprise\r\n") == ([], b"")
    assert (client.closing, client.fault) == (True, "a reply nobody asked for: 250 surprise")


@pytest.mark.parametrize("line", [b"\n", b"\r\n"])
def test_an_empty_line_is_garbage_not_a_reply(line: bytes) -> None:
    """A line of nothing matches no expected reply, idle or not."""
    client = Transactions(Mode.PIPELINING)
    assert client.receive(line) == ([], b"")
    assert client.fault == "not a reply: "


def test_lines_and_replies_without_an_end_are_cut_short() -> None:
    """Neither an endless line nor endless continuation lines make us hold more than the caps."""
    client = Transactions(Mode.PIPELINING)
    client.receive(b"2" * 10_000)
    assert client.fault == "a reply line without an end"
    client = Transactions(Mode.PIPELINING)
    client.submit(1, b"a@example.com", b"b@example.com", b"x\r\n")
    for _ in range(1000):
        client.receive(b"250-" + b"x" * 100 + b"\r\n")
    assert client.fault == "a reply without an end"


@all_modes
def test_quit_is_said_once_and_what_follows_is_ignored(mode: Mode) -> None:
    """After QUIT the 221 and anything else conclude nothing and are no fault."""
    client = Transactions(mode)
    assert client.quit() == b"QUIT\r\n"
    assert client.stage is Stage.QUIT
    assert client.quit() == b""
    assert client.receive(b"221 2.0.0 bye\r\nwhatever\r\n") == ([], b"")
    assert client.fault is None


@pytest.mark.parametrize("reply", [b"421 4.3.2 closing", b"500 what?"])
@both_modes
def test_a_failed_reset_ends_the_connection_before_the_next_message(mode: Mode, reply: bytes) -> None:
    """If RSET is not answered 250, no message goes over this connection any more."""
    relay = ScriptedRelay({(1, "RCPT"): b"550 5.1.1 nobody", (1, "RSET"): reply})
    client = Transactions(mode)
    run = drive(client, relay, THREE[:2])
    assert run.by_number()[1] == ("RCPT", "5xx")
    assert run.by_number().get(2, ("MAIL", "lost_before"))[1] in ("lost_before", "garbage_before")
    assert client.closing
    assert relay.accepted == []


def test_deadlines_are_told_what_is_awaited() -> None:
    """`stage` names the reply awaited at each step, IDLE when none is."""
    client = Transactions(Mode.PIPELINING)
    assert client.stage is Stage.IDLE
    client.submit(1, b"a@example.com", b"b@example.com", b"x\r\n")
    seen = [client.stage]
    for reply in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b"250 ok\r\n"):
        client.receive(reply)
        seen.append(client.stage)
    assert seen == [Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.BODY, Stage.IDLE]


@pytest.mark.parametrize("bad", [b"a\r\nRCPT TO:<x@example.com>", b"a\n", b"a\x00b", b"a\x7f"])
def test_an_address_cannot_end_its_command(bad: bytes) -> None:
    """Control characters in an address or parameter are refused, and the connection stays usable."""
    client = Transactions(Mode.PIPELINING)
    for mail, rcpt, params in ((bad, b"b@example.com", b""), (b"a@example.com", bad, b""), (b"a", b"b", bad)):
        with pytest.raises(ValueError, match="control character"):
            client.submit(1, mail, rcpt, b"x\r\n", params)
    with pytest.raises(ValueError, match="CRLF"):
        client.submit(1, b"a@example.com", b"b@example.com", b"no end")
    assert client.submit(1, b"a@example.com", b"b@example.com", b"x\r\n", b"SIZE=3") == (
        b"MAIL FROM:<a@example.com> SIZE=3\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
    )


@given(
    st.lists(st.sampled_from([b"", b".", b"..", b"...", b".x", b"x.", b"x", b"Subject: .", b"\x80\xff"]), min_size=1)
)
def test_dots_arrive_as_they_were(lines: list[bytes]) -> None:
    """Whatever lines begin with, the relay's message is ours (RFC 5321 4.5.2)."""
    body = b"\r\n".join(lines) + b"\r\n"
    relay = ScriptedRelay()
    drive(Transactions(Mode.PIPELINING), relay, [Message(body=body), Message()])
    assert [taken for *_, taken in relay.accepted] == [body, Message().body]


ANSWERS = st.sampled_from(
    [b"", b"", b"", b"", b"250 2.1.0 Ok", b"251 Ok", b"450 4.2.1 later", b"550 5.1.1 no", b"503 5.5.1 no", b"354 go",
     b"334 x", b"421 4.3.2 bye", b"454-4.7.1 a\r\n454 4.7.1 b", b"noise", CLOSE]
)  # fmt: skip
SCRIPTS = st.dictionaries(st.tuples(st.integers(1, 5), st.sampled_from([*STAGES, "RSET"])), ANSWERS, max_size=6)


@settings(max_examples=400, deadline=None)
@given(SCRIPTS, st.sampled_from(list(Mode)), st.integers(0, 9))
def test_whatever_a_relay_says_the_books_agree_with_it(script: dict, mode: Mode, cut: int) -> None:  # type: ignore[type-arg]
    """Each message is concluded at most once and judged; what the relay took is sent or uncertain, never bounced.

    And what we call sent, it took, unless the script made it lie.
    """
    relay = ScriptedRelay({place: answer for place, answer in script.items() if answer != b""})
    client = Transactions(mode)
    run = drive(client, relay, [Message(body=b"%d\r\n" % n) for n in range(1, 6)], cut=cut)
    states = {c.number: decide(c).state for c in run.concluded}
    assert len(states) == len(run.concluded)
    assert all((c.stage, c.event) in OUTCOMES for c in run.concluded)
    taken = {int(body) for *_, body in relay.accepted}
    assert all(states[number] in (States.SENT, States.UNCERTAIN) for number in taken), (taken, run.concluded)
    liar = any(answer in (b"250 2.1.0 Ok", b"251 Ok", b"354 go") for answer in script.values())
    if not liar:
        assert {number for number, state in states.items() if state is States.SENT} <= taken
    if len(states) < 5:
        assert client.closing
