"""The control socket with real clients: whatever is wrong with a request has a code, and the broker goes on."""

import asyncio
import os
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import zmq

from broker.contract import codec
from broker.contract.errors import EcmError
from broker.contract.messages import OPERATIONS
from broker.control import router as broker_router
from broker.control.router import HANDLERS
from tests.fixtures.control import Caller, SmallEngine, answering, content

Body = Callable[[SmallEngine, Caller], Coroutine[Any, Any, None]]


def serve(root: Path, body: Body) -> None:
    """One life of a small engine."""

    async def main() -> None:
        async with answering(root) as (engine, caller):
            await body(engine, caller)

    asyncio.run(main())


def test_every_operation_has_a_handler_and_every_handler_an_operation() -> None:
    """The declaration and the handlers are the same list."""
    assert HANDLERS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize(
    ("request_", "code", "field", "hint"),
    [
        ([1, 2], "bad_request", None, None),
        ("status", "bad_request", None, None),
        ({"id": 1, "op": "engine.status"}, "bad_request", "v", None),
        ({"v": 2, "id": 1, "op": "engine.status"}, "bad_request", "v", None),
        ({"v": True, "id": 1, "op": "engine.status"}, "bad_request", "v", None),
        ({"v": 1, "id": 1}, "unknown_operation", "op", "docs/protocol.md lists them"),
        ({"v": 1, "id": 1, "op": 7}, "unknown_operation", "op", "docs/protocol.md lists them"),
        ({"v": 1, "id": 1, "op": "campaign.puase"}, "unknown_operation", "op", "did you mean `campaign.pause`?"),
        ({"v": 1, "id": 1, "op": "engine.status", "arg": {}}, "unknown_key", "arg", "did you mean `args`?"),
        ({"v": 1, "id": 1, "op": "engine.status", 5: {}}, "unknown_key", "5", None),
        ({"v": 1, "id": 1, "op": "engine.status", "args": [1]}, "bad_request", "args", None),
        ({"v": 1, "id": 1, "op": "engine.status", "args": {1: 2}}, "bad_request", "args", None),
        ({"v": 1, "id": 1, "op": "engine.status", "args": {"x": 2}}, "unknown_key", "x", None),
        ({"v": 1, "id": 1, "op": "engine.stop", "key": ""}, "bad_request", "key", None),
        ({"v": 1, "id": 1, "op": "engine.stop", "key": "k" * 201}, "bad_request", "key", None),
        ({"v": 1, "id": 1, "op": "engine.stop", "key": 5}, "bad_request", "key", None),
        ({"v": 1, "id": 1, "op": "engine.stop", "args": {"now": "yes"}}, "invalid_value", "now", None),
        ({"v": 1, "id": 1, "op": "campaign.show"}, "missing_key", "campaign", None),
        ({"v": 1, "id": 1, "op": "campaign.show", "args": {"campaign": None}}, "invalid_value", "campaign", None),
        ({"v": 1, "id": 1, "op": "campaign.show", "args": {"campaing": 1}}, "unknown_key", "campaing", "`campaign`?"),
        ({"v": 1, "id": 1, "op": "campaign.show", "args": {"campaign": 99}}, "unknown_campaign", "campaign", None),
        ({"v": 1, "id": {}, "op": "engine.status"}, "bad_request", "id", None),
        ({"v": 1, "id": "x" * 300, "op": "engine.status"}, "bad_request", "id", None),
        ({"v": 1, "id": 1, "op": "suppress.import", "args": {"path": "mine.csv"}}, "invalid_value", "path", None),
        ({"v": 1, "id": 1, "op": "job.show", "args": {"job": 1 << 63}}, "invalid_value", "job", None),
    ],
)
def test_each_way_to_be_wrong_has_its_code(
    tmp_path: Path, request_: Any, code: str, field: str | None, hint: str | None
) -> None:
    """A wrong request is answered with code, field and hint, without a stack, and the next one is answered too."""

    async def body(_engine: SmallEngine, caller: Caller) -> None:
        reply = await caller.raw(request_)
        assert (reply["v"], reply["ok"], reply["error"]["code"]) == (1, False, code)
        assert reply["error"]["field"] == field
        assert hint is None or hint in reply["error"]["hint"]
        assert "Traceback" not in str(reply)
        assert await caller.ask("engine.status") == {"v": 1, "engine": {"health": "ok"}}

    serve(tmp_path, body)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b'{"v": 1}', b"\xdf\xff\xff\xff\xff", os.urandom(64), b"\x81" * 999])
def test_bytes_that_are_no_request_are_answered(tmp_path: Path, payload: bytes) -> None:
    """A payload that is not one msgpack map is `bad_request` with no id."""

    async def body(_engine: SmallEngine, caller: Caller) -> None:
        (frame,) = await caller.frames(payload)
        reply = codec.unpack(frame)
        assert (reply["id"], reply["ok"], reply["error"]["code"]) == (None, False, "bad_request")
        assert (await caller.ask("engine.status"))["v"] == 1

    serve(tmp_path, body)


def test_clients_of_every_kind_are_answered_in_their_own_framing(tmp_path: Path) -> None:
    """DEALER with and without a delimiter, REQ, and a proxy's hops: what stood before the payload comes back."""
    payload = codec.pack({"v": 1, "id": b"\0me", "op": "engine.status"})

    async def body(engine: SmallEngine, caller: Caller) -> None:
        for before in ([], [b""], [b"hop", b""], [b"hop", b"hop2", b""]):
            *after, frame = await caller.frames(*before, payload)
            assert after == before
            assert codec.unpack(frame) == {
                "v": 1,
                "id": b"\0me",
                "ok": True,
                "result": {"v": 1, "engine": {"health": "ok"}},
            }
        req = Caller(engine, zmq.REQ)
        for _ in range(2):
            assert (await req.ask("engine.status"))["v"] == 1
        req.close()

    serve(tmp_path, body)


def test_foreign_frames_are_dropped(tmp_path: Path) -> None:
    """A message that has not the shape of a request gets no reply, and the client's next request gets one."""

    async def body(_engine: SmallEngine, caller: Caller) -> None:
        await caller.socket.send_multipart([b"a", b"b"])
        await caller.socket.send_multipart([b"a", b"b", b"c"])
        await caller.socket.send_multipart([b""] * 40)
        assert (await caller.ask("engine.status"))["v"] == 1

    serve(tmp_path, body)


def test_a_request_that_is_too_large_is_told_so(tmp_path: Path) -> None:
    """One byte too many is an error, not a silence."""

    async def body(_engine: SmallEngine, caller: Caller) -> None:
        (frame,) = await caller.frames(b"\x00" * (codec.MESSAGE_BYTES_MAX + 1))
        error = codec.unpack(frame)["error"]
        assert (error["code"], "too large" in error["message"]) == ("bad_request", True)

    serve(tmp_path, body)


def test_a_fault_of_ours_is_internal_to_the_client_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A handler that breaks is one line for the client, a stack in the log, and the end of nothing."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        engine.status_map = lambda: {}["secret"]  # type: ignore[method-assign]
        with pytest.raises(EcmError) as caught:
            await caller.ask("engine.status")
        assert caught.value.code == "internal"
        assert "secret" not in caught.value.text()
        assert (await caller.ask("engine.stats"))["v"] == 1

    serve(tmp_path, body)
    assert "KeyError: 'secret'" in capfd.readouterr().err


def test_a_reply_that_cannot_be_packed_is_an_error(tmp_path: Path) -> None:
    """A file name that is not UTF-8 in an answer is told as such."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        engine.status_map = lambda: {"path": "m\udcfcller"}  # type: ignore[method-assign]
        with pytest.raises(EcmError, match="not UTF-8"):
            await caller.ask("engine.status")

    serve(tmp_path, body)


def test_a_request_that_waits_holds_up_no_other(tmp_path: Path) -> None:
    """While one client waits for its checks, another is answered; then the first one is."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        engine.campaigns.may_end_checks.clear()
        first = await caller.send("campaign.send", content(checked=True))
        second = await caller.send("engine.status")
        assert (await caller.reply())["id"] == second
        engine.campaigns.may_end_checks.set()
        reply = await caller.reply()
        assert (reply["id"], reply["result"]) == (first, {"campaign": 1, "followed": False})

    serve(tmp_path, body)


def test_too_many_requests_at_once_are_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests have a bound; above it the answer comes at once."""
    monkeypatch.setattr(broker_router, "REQUESTS_MAX", 2)

    async def body(engine: SmallEngine, caller: Caller) -> None:
        engine.campaigns.may_end_checks.clear()
        for name in ("a", "b"):
            await caller.send("campaign.send", content(name, checked=True))
        third = await caller.send("engine.status")
        reply = await caller.reply()
        assert (reply["id"], reply["error"]["code"]) == (third, "busy")
        engine.campaigns.may_end_checks.set()
        assert [(await caller.reply())["ok"] for _ in range(2)] == [True, True]

    serve(tmp_path, body)


def test_one_key_is_one_change_during_and_after_it_and_across_a_restart(tmp_path: Path) -> None:
    """A request asked again under its key gives the same reply and changes nothing, also by the next broker."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        engine.campaigns.may_end_checks.clear()
        other = Caller(engine)
        await caller.send("campaign.send", content(checked=True), key="k")
        await other.send("campaign.send", content(checked=True), key="k")
        while not engine.campaigns.specs:  # the first is under way
            await asyncio.sleep(0)
        third = Caller(engine)
        with pytest.raises(EcmError, match="in use for another request"):
            await third.ask("campaign.create", content("other"), key="k")
        third.close()
        engine.campaigns.may_end_checks.set()
        replies = [(await client.reply())["result"] for client in (caller, other)]
        assert replies == [{"campaign": 1, "followed": False}] * 2
        assert len(engine.campaigns.specs) == 1
        other.close()

    async def again(engine: SmallEngine, caller: Caller) -> None:
        assert await caller.ask("campaign.send", content(checked=True), key="k") == {"campaign": 1, "followed": False}
        assert engine.campaigns.specs == []
        with pytest.raises(EcmError, match="used for another request"):
            await caller.ask("campaign.pause", {"campaign": 1}, key="k")

    serve(tmp_path, body)
    serve(tmp_path, again)


def test_an_error_of_the_user_is_kept_under_its_key_and_one_of_the_world_is_not(tmp_path: Path) -> None:
    """Trying again after the relay came back succeeds; what was wrong with the request stays wrong."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        engine.campaigns.refusal = EcmError("relay_unreachable", "no answer")
        with pytest.raises(EcmError, match="no answer"):
            await caller.ask("campaign.send", content(checked=True), key="world")
        engine.campaigns.refusal = EcmError("no_recipients", "nobody")
        with pytest.raises(EcmError, match="nobody"):
            await caller.ask("campaign.send", content(checked=True), key="user")
        engine.campaigns.refusal = None
        with pytest.raises(EcmError, match="nobody"):
            await caller.ask("campaign.send", content(checked=True), key="user")
        assert (await caller.ask("campaign.send", content(checked=True), key="world"))["campaign"] == 1

    serve(tmp_path, body)


def test_a_key_on_a_question_is_ignored(tmp_path: Path) -> None:
    """What changes nothing is answered anew each time."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        assert (await caller.ask("campaign.list", key="k"))["campaigns"] == []
        await caller.ask("campaign.create", content())
        assert len((await caller.ask("campaign.list", key="k"))["campaigns"]) == 1

    serve(tmp_path, body)


def test_a_client_that_is_gone_hurts_nobody(tmp_path: Path) -> None:
    """The reply to a client that left is dropped, what it began is done, and others are answered."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        engine.campaigns.may_end_checks.clear()
        leaver = Caller(engine)
        await leaver.send("campaign.send", content(checked=True), key="k")
        while not engine.campaigns.specs:
            await asyncio.sleep(0)
        leaver.close()
        engine.campaigns.may_end_checks.set()
        assert await caller.ask("campaign.send", content(checked=True), key="k") == {"campaign": 1, "followed": False}

    serve(tmp_path, body)


def test_a_stopping_engine_answers_questions_and_takes_no_changes(tmp_path: Path) -> None:
    """While it drains, status is told and a new campaign is refused; a second stop, more urgent, is taken."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        answer = await caller.ask("engine.stop")
        assert answer["stopping"] is True
        pid, start = answer["processes"][0]
        assert pid == os.getpid()
        assert start > 0
        assert (await caller.ask("engine.status"))["engine"]["health"] == "draining"
        with pytest.raises(EcmError) as caught:
            await caller.ask("campaign.create", content())
        assert caught.value.code == "stopping"
        await caller.ask("engine.stop", {"now": True})
        assert engine.stops == [False, True]

    serve(tmp_path, body)


def test_only_the_service_and_its_group_can_reach_the_socket(tmp_path: Path) -> None:
    """The socket is 0660."""

    async def body(engine: SmallEngine, _caller: Caller) -> None:
        assert stat.S_IMODE(engine.state.control.stat().st_mode) == 0o660

    serve(tmp_path, body)


def test_a_burst_of_requests_is_answered_to_the_last_one(tmp_path: Path) -> None:
    """Sending replies never swallows the news of requests that came meanwhile."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        callers = [caller, *(Caller(engine) for _ in range(4))]
        for _ in range(50):
            for client in callers:
                await client.send("engine.status")
        replies = await asyncio.gather(*(client.reply() for client in callers for _ in range(50)))
        assert all(reply["ok"] for reply in replies)
        for client in callers[1:]:
            client.close()

    serve(tmp_path, body)
