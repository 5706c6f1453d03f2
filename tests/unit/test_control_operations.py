"""What each operation does, asked over the real socket."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from broker.contract.errors import EcmError
from broker.contract.settings import Settings
from broker.store.audience import AudienceStore
from tests.fixtures.control import Caller, SmallEngine, answering, content
from tests.fixtures.parts import START_ID

Body = Callable[[SmallEngine, Caller], Coroutine[Any, Any, None]]

SETTINGS = Settings.model_validate(
    {
        "relay": {
            "default": {"host": "smtp.example.com", "username": "me", "password": "secret"},
            "broken": {"host": "192.0.2.1"},
        },
        "pool": {"main": {"default": 3}},
    }
)


def serve(root: Path, body: Body, settings: Settings | None = None) -> None:
    """One life of a small engine."""

    async def main() -> None:
        async with answering(root, settings) as (engine, caller):
            await body(engine, caller)

    asyncio.run(main())


async def refused(caller: Caller, op: str, args: dict[str, Any]) -> EcmError:
    """The error of a request that must fail."""
    with pytest.raises(EcmError) as caught:
        await caller.ask(op, args)
    return caught.value


def test_a_campaign_is_created_launched_paused_resumed_and_cancelled(tmp_path: Path) -> None:
    """Each step answers the campaign object, by id or by name."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        assert await caller.ask("campaign.create", content()) == {"campaign": 1}
        assert engine.campaigns.specs[0].recipients == "/home/me/recipients.csv"
        assert await caller.ask("campaign.show", {"campaign": "1"}) == {"id": 1, "name": "news", "state": "draft"}
        assert (await caller.ask("campaign.launch", {"campaign": "news", "checked": True}))["state"] == "running"
        for step, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
            assert (await caller.ask(f"campaign.{step}", {"campaign": 1}))["state"] == state
        assert [each["id"] for each in (await caller.ask("campaign.list"))["campaigns"]] == [1]

    serve(tmp_path, body)


def test_a_campaign_is_retried_and_says_what_holds_it_back(tmp_path: Path) -> None:
    """Failed people unless others are named; a state nobody can be retried from is refused before anything is done."""

    async def body(_engine: SmallEngine, caller: Caller) -> None:
        await caller.ask("campaign.create", content())
        answer = await caller.ask("campaign.retry", {"campaign": "news"}, key="k")
        assert answer == {"retried": {"failed": 1}, "campaign": {"id": 1, "name": "news", "state": "running"}}
        assert await caller.ask("campaign.retry", {"campaign": "news"}, key="k") == answer
        both = await caller.ask("campaign.retry", {"campaign": 1, "states": ["uncertain", "failed"]})
        assert both["retried"] == {"uncertain": 1, "failed": 1}
        for states in (["bounced"], [], "failed"):
            error = await refused(caller, "campaign.retry", {"campaign": 1, "states": states})
            assert error.code == "invalid_value"
            assert (error.field or "").startswith("states")
        assert await caller.ask("campaign.why", {"campaign": 1}) == {"campaign": 1, "state": "running", "causes": []}
        assert (await refused(caller, "campaign.why", {"campaign": "nobody"})).code == "unknown_campaign"

    serve(tmp_path, body)


def test_sending_a_name_replaces_a_draft_follows_what_runs_and_refuses_what_ended(tmp_path: Path) -> None:
    """A name belongs to one campaign: the rules of send and wait."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        await caller.ask("campaign.create", content())
        sent = content(text=content()["text"].replace("Hello", "Hi"))
        assert await caller.ask("campaign.send", sent) == {"campaign": 1, "followed": False}
        assert engine.campaigns.specs[-1].subject == "Hi"
        for state in ("preparing", "running", "waiting", "paused"):
            await engine.campaigns._set(1, state)
            assert await caller.ask("campaign.send", sent) == {"campaign": 1, "followed": True}
        await engine.campaigns._set(1, "finished")
        assert (await refused(caller, "campaign.send", sent)).code == "campaign_ended"

    serve(tmp_path, body)


def test_two_senders_of_one_name_launch_it_once(tmp_path: Path) -> None:
    """Whoever is slower follows."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        other = Caller(engine)
        answers = await asyncio.gather(*(client.ask("campaign.send", content()) for client in (caller, other)))
        assert sorted(answer["followed"] for answer in answers) == [False, True]
        assert {answer["campaign"] for answer in answers} == {1}
        other.close()

    serve(tmp_path, body)


def test_a_send_that_waits_for_its_checks_gets_their_error_whole(tmp_path: Path) -> None:
    """File, line and count of what was wrong reach the client."""
    error = EcmError("missing_field", "no `city`", file="r.csv", line=7, field="city", count=3, hint="add it")

    async def body(engine: SmallEngine, caller: Caller) -> None:
        engine.campaigns.refusal = error
        assert (await refused(caller, "campaign.send", content(checked=True))).to_map() == error.to_map()
        assert (await caller.ask("campaign.show", {"campaign": 1}))["state"] == "draft"

    serve(tmp_path, body)


def test_a_check_tells_all_that_is_wrong_with_a_file_and_keeps_nothing(tmp_path: Path) -> None:
    """Several errors at once, each with its place; a good file is checked over its audience."""

    async def body(_engine: SmallEngine, caller: Caller) -> None:
        bad = content(text=content()["text"].replace('name = "news"', 'name = "7"\nwieght = 2'))
        answer = await caller.ask("campaign.check", bad)
        assert answer["ok"] is False
        assert [(error["code"], error["line"]) for error in answer["errors"]] == [
            ("invalid_value", 2),
            ("unknown_key", 3),
        ]
        assert await caller.ask("campaign.check", content()) == {
            "ok": True,
            "errors": [],
            "warnings": ["checked news"],
        }
        assert (await caller.ask("campaign.list"))["campaigns"] == []
        error = await refused(caller, "campaign.create", bad)
        assert (error.file, error.line) == ("/home/me/campaign.toml", 2)

    serve(tmp_path, body)


def test_recipients_must_be_a_path_that_the_engine_can_understand(tmp_path: Path) -> None:
    """A relative path in the text, with none beside it, is refused with the way to mend it."""

    async def body(_engine: SmallEngine, caller: Caller) -> None:
        text = 'recipients = "recipients.csv"\n' + content()["text"]
        error = await refused(caller, "campaign.create", content(text=text, recipients=None))
        assert (error.code, error.field) == ("invalid_value", "recipients")
        await caller.ask("campaign.create", content(text=text.replace('"recip', '"/srv/recip'), recipients=None))

    serve(tmp_path, body)


def test_addresses_are_suppressed_listed_and_let_in_again(tmp_path: Path) -> None:
    """Newest first, in pages, by prefix whatever its case."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        added = await caller.ask("suppress.add", {"addresses": ["a@x.org", "B@x.org"], "reason": "complaint"})
        assert added == {"added": 2, "already": 0}
        assert engine.log.count == 2
        page = await caller.ask("suppress.list", {"limit": 1})
        assert (page["total"], [row["address"] for row in page["suppressions"]]) == (2, ["b@x.org"])
        page = await caller.ask("suppress.list", {"limit": 1, "before": page["next"]})
        assert [row["address"] for row in page["suppressions"]] == ["a@x.org"]
        assert page["suppressions"][0]["created"].endswith("Z")
        assert (await caller.ask("suppress.list", {"limit": 1, "before": page["next"]}))["next"] is None
        found = await caller.ask("suppress.list", {"prefix": "B@"})
        assert [(row["kind"], row["source"]) for row in found["suppressions"]] == [("complaint", "operator")]
        assert await caller.ask("suppress.remove", {"addresses": ["A@X.ORG"]}) == {"removed": 1, "unknown": 0}
        assert (await refused(caller, "suppress.add", {"addresses": ["nonsense"]})).code == "invalid_value"

    serve(tmp_path, body)


def test_a_file_of_addresses_is_imported_as_a_job(tmp_path: Path) -> None:
    """The answer is a job; asked for, it tells its state and in the end its numbers."""
    path = tmp_path / "leavers.txt"
    path.write_text("a@x.org\nb@x.org\noops\n")

    async def body(_engine: SmallEngine, caller: Caller) -> None:
        job = (await caller.ask("suppress.import", {"path": str(path)}))["job"]
        while (shown := await caller.ask("job.show", {"job": job}))["state"] not in ("done", "failed"):
            pass
        assert (shown["kind"], shown["state"], shown["error"]) == ("suppress.import", "done", None)
        assert (shown["result"]["added"], shown["result"]["first_invalid_line"]) == (2, 3)
        missing = await refused(caller, "suppress.import", {"path": str(tmp_path / "none")})
        assert (missing.code, missing.file) == ("file_missing", str(tmp_path / "none"))

    serve(tmp_path / "state", body)


def test_lists_are_read_here_and_changed_by_the_loader(tmp_path: Path) -> None:
    """An import is a job offered to the loader; an unsubscribe is answered with what the loader says."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        assert await caller.ask("audience.lists") == {"lists": []}
        store = AudienceStore.open(engine.state.audience_db)
        store.ensure("customers", 1.0)
        store.close()
        assert [each["list"] for each in (await caller.ask("audience.lists"))["lists"]] == ["customers"]
        shown = await caller.ask("audience.show", {"list": "customers"})
        assert (shown["subscribed"], shown["created"]) == (0, "1970-01-01T00:00:01.000Z")
        assert (await refused(caller, "audience.show", {"list": "customer"})).code == "unknown_list"
        job = (await caller.ask("audience.import", {"list": "customers", "path": "/srv/c.csv"}))["job"]
        assert engine.to_loader[-1] == {
            "type": "job",
            "job": job,
            "kind": "import",
            "args": {"list": "customers", "path": "/srv/c.csv", "email_column": None, "dry_run": False},
        }
        await caller.send("audience.unsubscribe", {"list": "customers", "address": "a@x.org"})
        offer = (await engine.offered(2))[-1]
        assert (offer["kind"], offer["args"]) == ("unsubscribe", {"list": "customers", "address": "a@x.org"})
        await engine.jobs.on_message({"type": "job.done", "job": offer["job"], "result": {"changed": True}})
        assert (await caller.reply())["result"] == {"changed": True}

    serve(tmp_path, body)


def test_relays_are_told_without_secrets_and_checked(tmp_path: Path) -> None:
    """Settings and state of each relay; a check of one, of all, and of one that is not declared."""

    async def body(_engine: SmallEngine, caller: Caller) -> None:
        answer = await caller.ask("relay.list")
        default = answer["relays"][0]
        assert (default["name"], default["host"], default["state"]) == ("default", "smtp.example.com", "up")
        assert default["password"] == "set"
        assert answer["pools"] == {"main": {"default": 3}}
        assert await caller.ask("relay.check", {"relay": "default"}) == {
            "ok": True,
            "relays": [{"name": "default", "ok": True}],
        }
        assert (await caller.ask("relay.check"))["ok"] is False
        assert (await refused(caller, "relay.check", {"relay": "defualt"})).code == "unknown_relay"
        assert "secret" not in str(await caller.ask("engine.config"))

    serve(tmp_path, body, SETTINGS)


def test_a_snapshot_of_events_is_not_newer_than_its_state(tmp_path: Path) -> None:
    """Numbers and state come together, with the start they belong to."""

    async def body(engine: SmallEngine, caller: Caller) -> None:
        await caller.ask("campaign.create", content())
        engine.events.publish("campaign", "campaign.created", campaign=1)
        answer = await caller.ask("events.snapshot")
        assert (answer["start"], answer["topics"]) == (START_ID, {"campaign.1.": 1})
        assert answer["stats"]["campaigns"][0]["id"] == 1

    serve(tmp_path, body)
