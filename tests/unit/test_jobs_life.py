"""Jobs over a real store and a loader that is a list of messages: every death and every lost message is made up for."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from broker import jobs as broker_jobs
from broker.contract.errors import EcmError
from broker.jobs import Progress
from broker.store import jobs as store_jobs
from tests.fixtures.parts import Parts, listening, parts


def with_parts(root: Path, body: Callable[[Parts], Coroutine[Any, Any, None]]) -> None:
    """One life of a broker."""

    async def main() -> None:
        async with parts(root) as made:
            await body(made)

    asyncio.run(main())


def test_a_job_is_offered_followed_and_ended(tmp_path: Path) -> None:
    """The loader gets kind and arguments; progress shows; the result reaches who waits and who asks later."""

    async def body(made: Parts) -> None:
        job = await made.jobs.start("import", {"list": "a"})
        assert made.to_loader == [{"type": "job", "job": job, "kind": "import", "args": {"list": "a"}}]
        assert (await made.jobs.show(job))["state"] == "queued"
        await made.jobs.on_message({"type": "job.progress", "job": job, "data": {"rows": 5}})
        shown = await made.jobs.show(job)
        assert (shown["state"], shown["progress"], shown["result"]) == ("running", {"rows": 5}, None)
        waiting = asyncio.create_task(made.jobs.result(job))
        await made.jobs.on_message({"type": "job.done", "job": job, "result": {"rows": 9}})
        assert await waiting == {"rows": 9} == await made.jobs.result(job)
        assert (await made.jobs.show(job))["state"] == "done"

    with_parts(tmp_path, body)


def test_a_failure_is_the_loaders_own_error(tmp_path: Path) -> None:
    """File, line and hint of the loader's error reach who waits, then and later."""

    async def body(made: Parts) -> None:
        job = await made.jobs.start("snapshot", {"campaign": 1})
        error = EcmError("no_header", "no header", file="r.csv", line=1, hint="add one")
        await made.jobs.on_message({"type": "job.failed", "job": job, "error": error.to_map()})
        await made.jobs.on_message({"type": "job.done", "job": job, "result": {}})
        for _ in range(2):
            with pytest.raises(EcmError) as caught:
                await made.jobs.result(job)
            assert caught.value.to_map() == error.to_map()
        assert (await made.jobs.show(job))["error"] == error.to_map()

    with_parts(tmp_path, body)


def test_one_key_is_one_job_while_it_runs_and_after(tmp_path: Path) -> None:
    """Starting again under the key is answered with the same id and offers nothing twice."""

    async def body(made: Parts) -> None:
        job = await made.jobs.start("import", {"list": "a"}, "k")
        assert await made.jobs.start("import", {"list": "a"}, "k") == job
        await made.jobs.on_message({"type": "job.done", "job": job, "result": {}})
        assert await made.jobs.start("import", {"list": "a"}, "k") == job
        assert len(made.to_loader) == 1

    with_parts(tmp_path, body)


def test_a_new_loader_is_offered_all_open_work(tmp_path: Path) -> None:
    """When a loader dies its successor begins what had not ended, and only that."""

    async def body(made: Parts) -> None:
        first, second = [await made.jobs.start("check", {"n": n}) for n in range(2)]
        await made.jobs.on_message({"type": "job.progress", "job": second, "data": {}})
        await made.jobs.on_message({"type": "job.done", "job": first, "result": {}})
        made.to_loader.clear()
        await made.jobs.offer_again()
        assert [message["job"] for message in made.to_loader] == [second]

    with_parts(tmp_path, body)


def test_a_lost_offer_is_repeated_until_the_loader_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An offer nobody answered comes again; one that was answered does not."""
    monkeypatch.setattr(broker_jobs, "OFFER_AGAIN_S", 0.02)

    async def body(made: Parts) -> None:
        await made.jobs.resume()
        job = await made.jobs.start("import", {})
        await made.offered(3)
        await made.jobs.on_message({"type": "job.progress", "job": job, "data": {}})
        made.to_loader.clear()
        other = await made.jobs.start("check", {})
        await made.offered(3)
        assert {message["job"] for message in made.to_loader} == {other}

    with_parts(tmp_path, body)


def test_a_new_broker_takes_up_imports_and_fails_what_was_tied_to_the_old_one(tmp_path: Path) -> None:
    """After the broker died an import goes on; a snapshot nobody waits for does not run beside the new one."""
    ids: dict[str, int] = {}

    async def first(made: Parts) -> None:
        for kind in ("import", "snapshot", "check"):
            ids[kind] = await made.jobs.start(kind, {"kind": kind})

    async def second(made: Parts) -> None:
        ids["new"] = await made.jobs.start("snapshot", {"campaign": 1})
        await made.jobs.resume()
        assert [message["job"] for message in made.to_loader] == [ids["new"], ids["import"]]
        for kind in ("snapshot", "check"):
            with pytest.raises(EcmError) as caught:
                await made.jobs.result(ids[kind])
            assert caught.value.code == "stopping"
        await made.jobs.on_message({"type": "job.done", "job": ids["import"], "result": {"rows": 1}})
        assert await made.jobs.result(ids["import"]) == {"rows": 1}

    with_parts(tmp_path, first)
    with_parts(tmp_path, second)


def test_cancelling_a_campaign_ends_its_snapshot_and_no_other(tmp_path: Path) -> None:
    """The loader is told to stop; the job ends when it has let go of the files, and not before."""

    async def body(made: Parts) -> None:
        mine, other = [await made.jobs.start("snapshot", {"campaign": n}) for n in (7, 70)]
        made.jobs.cancel_for(7)
        assert made.to_loader[-1] == {"type": "job.cancel", "job": mine}
        assert (await made.jobs.show(mine))["state"] == "queued"
        error = EcmError("campaign_cancelled", "the job was cancelled")
        await made.jobs.on_message({"type": "job.failed", "job": mine, "error": error.to_map()})
        with pytest.raises(EcmError) as caught:
            await made.jobs.result(mine)
        assert caught.value.code == "campaign_cancelled"
        await made.jobs.on_message({"type": "job.done", "job": mine, "result": {}})
        assert (await made.jobs.show(mine))["state"] == "failed"
        assert (await made.jobs.show(other))["state"] == "queued"

    with_parts(tmp_path, body)


def test_a_cancelled_snapshot_ends_with_the_loader_that_worked_at_it(tmp_path: Path) -> None:
    """A loader that died lets go of everything: the next one is not asked for what nobody wants any more."""

    async def body(made: Parts) -> None:
        job = await made.jobs.start("snapshot", {"campaign": 7})
        made.jobs.cancel_for(7)
        made.to_loader.clear()
        await made.jobs.offer_again()
        assert made.to_loader == []
        assert (await made.jobs.show(job))["state"] == "failed"

    with_parts(tmp_path, body)


def test_the_brokers_own_work_runs_here_and_a_fault_in_it_is_its_error(tmp_path: Path) -> None:
    """Own work is never offered to the loader; an unforeseen exception fails the job and nothing else."""

    async def work(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        progress({"rows": 1})
        return {"answer": 6 / args["by"]}

    async def body(made: Parts) -> None:
        made.jobs.run_here("own", work)
        job = await made.jobs.start("own", {"by": 3})
        assert await made.jobs.result(job) == {"answer": 2.0}
        with pytest.raises(EcmError, match="ZeroDivisionError") as caught:
            await made.jobs.result(await made.jobs.start("own", {"by": 0}))
        assert caught.value.code == "internal"
        assert made.to_loader == []

    with_parts(tmp_path, body)


def test_the_brokers_own_work_begins_again_after_a_restart(tmp_path: Path) -> None:
    """A broker that ends in the midst of its own job leaves it to the next one."""
    ids: list[int] = []

    async def endless(_args: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def quick(args: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        return dict(args)

    async def first(made: Parts) -> None:
        made.jobs.run_here("own", endless)
        ids.append(await made.jobs.start("own", {"n": 4}))

    async def second(made: Parts) -> None:
        made.jobs.run_here("own", quick)
        await made.jobs.resume()
        assert await made.jobs.result(ids[0]) == {"n": 4}

    with_parts(tmp_path, first)
    with_parts(tmp_path, second)


def test_what_becomes_of_a_job_is_told(tmp_path: Path) -> None:
    """Start, progress and end are events of the job's topic; a result is told without its thousands of shards."""

    async def body(made: Parts) -> None:
        async with listening(made, "job.") as listener:
            job = await made.jobs.start("snapshot", {"campaign": 1})
            await made.jobs.on_message({"type": "job.progress", "job": job, "data": {"rows": 5}})
            await made.jobs.on_message({"type": "job.done", "job": job, "result": {"rows": 9, "shards": [[1, "x", 9]]}})
            heard = [await listener.until(f"job.{event}") for event in ("started", "progress", "done")]
        assert [(message["topic"], message["seq"]) for message in heard] == [(f"job.{job}.", n) for n in (1, 2, 3)]
        assert heard[1]["data"] == {"job": job, "kind": "snapshot", "rows": 5}
        assert heard[2]["data"] == {"job": job, "kind": "snapshot", "result": {"rows": 9}}

    with_parts(tmp_path, body)


def test_a_store_that_cannot_take_the_end_tells_who_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full the waiter gets that error, and the job is unfinished for the next start."""

    def full(*_args: object) -> None:
        raise EcmError("disk_full", "no space left")

    async def body(made: Parts) -> None:
        job = await made.jobs.start("import", {})
        waiting = asyncio.create_task(made.jobs.result(job))
        await asyncio.sleep(0)
        monkeypatch.setattr(store_jobs, "finish", full)
        await made.jobs.on_message({"type": "job.done", "job": job, "result": {}})
        with pytest.raises(EcmError) as caught:
            await waiting
        assert caught.value.code == "disk_full"
        assert [row.id for row in await made.store_call(store_jobs.unfinished)] == [job]

    with_parts(tmp_path, body)


@pytest.mark.parametrize("message", [{}, {"job": None}, {"type": "job.done", "job": 99}, {"type": "job.done"}])
def test_a_message_about_no_job_is_dropped(tmp_path: Path, message: dict[str, Any]) -> None:
    """Late, foreign and broken messages do no harm."""
    with_parts(tmp_path, lambda made: made.jobs.on_message(message))


def test_asking_for_a_job_nobody_started_is_said(tmp_path: Path) -> None:
    """`unknown_job`, for showing it and for waiting."""

    async def body(made: Parts) -> None:
        for ask in (made.jobs.show, made.jobs.result):
            with pytest.raises(EcmError) as caught:
                await ask(5)
            assert caught.value.code == "unknown_job"

    with_parts(tmp_path, body)
