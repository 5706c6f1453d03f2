"""The loader as an actor: jobs come as messages, run side by side, and are answered once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.loader import actor as actor_module
from actors.loader.actor import Loader
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir


class Stage:
    """A loader on the running loop, with what it says collected."""

    def __init__(self, state: StateDir) -> None:
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.logged: list[str] = []
        log = SimpleNamespace(
            error=lambda event, **_fields: self.logged.append(event), info=lambda event, **_fields: None
        )
        clock = SimpleNamespace(now_s=lambda: 1_800_000_000)
        self.ctx: Any = SimpleNamespace(state=state, clock=clock, send=self.said.put_nowait, log=log)
        self.loader = Loader()

    async def heard(self, kind: str) -> dict[str, Any]:
        """The next message of that type; others are passed over."""
        while True:
            message = await asyncio.wait_for(self.said.get(), 20)
            if message["type"] == kind:
                return message


Play = Callable[[Stage], Any]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Play], None]:
    """Runs a coroutine with a started loader, and drains it at the end."""
    state = StateDir(tmp_path / "state")
    state.root.mkdir()

    def run(scene: Play) -> None:
        async def whole() -> None:
            stage = Stage(state)
            await stage.loader.start(stage.ctx)
            try:
                await scene(stage)
            finally:
                await stage.loader.drain(now=True)

        asyncio.run(whole())

    return run


def job(number: int, kind: str, args: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "job", "job": number, "kind": kind, "args": args or {}}


def test_import_is_done_and_answered_again_when_asked_again(play: Callable[[Play], None], tmp_path: Path) -> None:
    """A job ends with its result; the same job asked again is answered from memory, not done again."""
    path = tmp_path / "r.csv"
    path.write_text("email,name\nann@example.com,Ann\n")

    async def scene(stage: Stage) -> None:
        asked = job(3, "import", {"list": "people", "path": str(path), "email_column": None, "dry_run": False})
        stage.loader.on_message(asked)
        progress = await stage.heard("job.progress")
        assert (progress["job"], progress["data"]["phase"]) == (3, "reading")
        done = await stage.heard("job.done")
        assert (done["job"], done["result"]["added"]) == (3, 1)
        path.unlink()
        stage.loader.on_message(asked)
        assert await stage.heard("job.done") == done

    play(scene)


def test_what_is_wrong_is_told_as_an_error_map(play: Callable[[Play], None]) -> None:
    """A job that fails carries the error that the user will see; an unknown kind is refused."""

    async def scene(stage: Stage) -> None:
        stage.loader.on_message(job(1, "import", {"list": "people", "path": "/nonexistent/r.csv"}))
        failed = await stage.heard("job.failed")
        assert (failed["job"], failed["error"]["code"], failed["error"]["exit"]) == (1, "file_missing", 2)
        stage.loader.on_message(job(2, "dance"))
        assert (await stage.heard("job.failed"))["error"]["code"] == "bad_request"

    play(scene)


def test_fault_of_ours_fails_the_job_and_not_the_loader(
    play: Callable[[Play], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception nobody foresaw is logged and told as internal; the next job runs."""

    def crash(*_unused: Any) -> dict[str, Any]:
        raise RuntimeError("boom")

    monkeypatch.setitem(actor_module.JOBS, "crash", crash)
    monkeypatch.setitem(actor_module.JOBS, "fine", lambda *_unused: {"fine": True})

    async def scene(stage: Stage) -> None:
        stage.loader.on_message(job(1, "crash"))
        failed = await stage.heard("job.failed")
        assert failed["error"]["code"] == "internal"
        assert "boom" in failed["error"]["message"]
        assert stage.logged == ["job crashed"]
        stage.loader.on_message(job(2, "fine"))
        assert (await stage.heard("job.done"))["result"] == {"fine": True}

    play(scene)


def test_check_does_not_wait_behind_imports_and_a_cancelled_job_stops(
    play: Callable[[Play], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imports wait for one another; other jobs run beside them; cancelling ends the job it names alone."""
    begun: list[int] = []

    def long(_ctx: Any, number: int, _args: Any, _progress: Any, cancelled: Callable[[], bool]) -> dict[str, Any]:
        begun.append(number)
        while not cancelled():
            threading.Event().wait(0.01)
        raise EcmError("campaign_cancelled", "the job was cancelled")

    monkeypatch.setitem(actor_module.JOBS, "import", long)
    monkeypatch.setitem(actor_module.JOBS, "check", lambda *_unused: {"ok": True})

    async def scene(stage: Stage) -> None:
        for number in (1, 2, 1):
            stage.loader.on_message(job(number, "import"))
        stage.loader.on_message(job(5, "check"))
        assert (await stage.heard("job.done"))["job"] == 5
        assert begun == [1]
        stage.loader.on_message({"type": "job.cancel", "job": 1})
        assert (await stage.heard("job.failed"))["job"] == 1
        stage.loader.on_message({"type": "job.cancel", "job": 2})
        assert (await stage.heard("job.failed"))["job"] == 2
        assert begun == [1, 2]

    play(scene)


def test_draining_stops_jobs_without_an_answer(play: Callable[[Play], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job stopped by the end of the engine is not told as failed: it begins again at the next start."""
    begun = threading.Event()

    def long(_ctx: Any, _job: int, _args: Any, _progress: Any, cancelled: Callable[[], bool]) -> dict[str, Any]:
        begun.set()
        while not cancelled():
            threading.Event().wait(0.01)
        raise EcmError("campaign_cancelled", "the job was cancelled")

    monkeypatch.setitem(actor_module.JOBS, "snapshot", long)

    async def scene(stage: Stage) -> None:
        stage.loader.on_message(job(1, "snapshot"))
        await asyncio.to_thread(begun.wait, 10)
        await stage.loader.drain(now=True)
        assert stage.said.empty()
        stage.loader.on_message(job(2, "snapshot"))
        assert stage.said.empty()

    play(scene)
