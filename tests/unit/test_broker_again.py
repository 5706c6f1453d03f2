"""What `campaign retry` decides and does, over a real store and real files; processes come in tests/system."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from broker.again import Again
from broker.contract.errors import EcmError
from broker.custody import Custody
from broker.giveup import look_s
from broker.refusals import refusals
from broker.running import ShardState
from broker.store import campaigns, retries
from broker.store.retries import Intent, intent_of
from broker.store.store import Store
from shm.files import bundle
from shm.files.ledger import States
from tests.fixtures.campaign_files import (  # noqa: F401  (a fixture)
    BOOT,
    INSTANCE,
    NOW,
    CampaignFiles,
    campaign_files,
)
from tests.fixtures.campaigns_running import campaign_of, counts
from tests.fixtures.parts import Parts, parts

F, U = States.FAILED, States.UNCERTAIN
BOTH = ("failed", "uncertain")


class Quiet:
    """As much of an engine as a campaign that is being taken up needs."""

    def __init__(self, files: CampaignFiles, made: Parts) -> None:
        self.state, self.instance, self.store_call, self.now_s = (
            files.state,
            INSTANCE,
            made.store_call,
            lambda: NOW + 99,
        )
        self.task: Callable[[Coroutine[Any, Any, None]], None]
        self.tables: Any = made.tables
        self.tables.suppressed = made.log
        self.again = Again(self, None, Custody(files.state, INSTANCE, BOOT))  # type: ignore[arg-type]

    async def work(self, function: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(function)

    async def row(self) -> Any:
        return await self.store_call(campaigns.get, 1)

    async def finish(self, files: CampaignFiles) -> list[ShardState]:
        """Take its shards up, as a start does."""
        shards = [ShardState(number, "other", rows, _counted(files, number)) for number, rows in ((1, 10), (2, 5))]
        await self.again.finish(await self.row(), shards)
        return shards


def _counted(files: CampaignFiles, number: int) -> Any:
    ledger = files.ledger(number)
    found = ledger.summary() or ledger.count()
    ledger.close()
    return found


def run(files: CampaignFiles, body: Callable[[Quiet, Parts], Coroutine[Any, Any, None]]) -> None:
    """One start over the files."""

    async def main() -> None:
        async with parts(files.state.root) as made:
            await body(Quiet(files, made), made)

    asyncio.run(main())


@pytest.fixture
def finished(campaign_files: CampaignFiles) -> CampaignFiles:  # noqa: F811
    """A campaign that is over: shard 1 has rows 0-3 failed and 4-5 uncertain, shard 2 row 0 failed; others are sent."""
    rows = {row: F if row < 4 else U if row < 6 else States.SENT for row in range(10)}
    campaign_files.send(1, rows)
    campaign_files.send(2, {0: F, 1: States.SENT, 2: States.SENT, 3: States.SENT})
    campaign_files.store("finished", audience=14, failed=5, uncertain=2, sent=7)
    return campaign_files


def test_a_decision_makes_a_finished_campaign_run_and_stands_until_it_is_done(finished: CampaignFiles) -> None:
    """In one transaction; the final account stays beside it, and nothing of the decision is left afterwards."""

    async def body(quiet: Quiet, _made: Parts) -> None:
        before = await quiet.row()
        assert intent_of(before) is None
        await quiet.store_call(retries.begin, 1, BOTH, NOW + 50)
        row = await quiet.row()
        assert (row.state, row.finished, intent_of(row)) == ("running", None, Intent(BOTH, NOW + 50))
        assert row.counts["failed"] == before.counts["failed"]
        await quiet.store_call(retries.done, 1, 7)
        row = await quiet.row()
        rests = [[before.finished, max(before.finished, NOW + 50)]]  # a time that `seconds` leaves out
        assert (intent_of(row), row.counts, row.suppressed_position) == (None, {**before.counts, "rests": rests}, 7)

    run(finished, body)


@pytest.mark.parametrize("state", ["draft", "preparing", "cancelled"])
def test_what_does_not_run_and_did_not_finish_is_refused(finished: CampaignFiles, state: str) -> None:
    """And stays as it is."""
    store = Store.open(finished.state.store_db)
    try:
        campaigns.set_state(store, 1, state)
        with pytest.raises(EcmError, match=f"cannot retry: it is {state}"):
            retries.begin(store, 1, BOTH, NOW)
        row = campaigns.get(store, 1)
        assert row is not None
        assert (row.state, intent_of(row)) == (state, None)
        with pytest.raises(EcmError, match="no campaign has this id"):
            retries.begin(store, 2, BOTH, NOW)
    finally:
        store.close()


def test_a_campaign_cancelled_in_between_retries_nobody(finished: CampaignFiles) -> None:
    """A decision that stands there is void."""

    async def body(quiet: Quiet, _made: Parts) -> None:
        await quiet.store_call(retries.begin, 1, BOTH, NOW + 50)
        await quiet.store_call(campaigns.set_state, 1, "cancelled")
        shards = await quiet.finish(finished)
        assert [shard.counts.failed for shard in shards] == [4, 1]

    run(finished, body)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_retry_cut_short_is_done_to_its_end_by_the_next_start(finished: CampaignFiles, done: int) -> None:
    """However many ledgers were changed before: in the end all are, and who failed again since is not meant."""

    async def body(quiet: Quiet, _made: Parts) -> None:
        await quiet.store_call(retries.begin, 1, BOTH, NOW + 50)
        for number in range(1, done + 1):
            ledger = finished.ledger(number)
            ledger.retry((F, U), NOW + 60, NOW + 50)
            ledger.close()
        if done == 2:  # it was lent again at once, and row 0 failed once more
            finished.send(2, {0: F})
            ledger = finished.ledger(2)
            ledger.b[0] = NOW + 70 << 32
            ledger.settle()
            ledger.close()
        shards = await quiet.finish(finished)
        assert [shard.counts.deferred for shard in shards] == [6, 0 if done == 2 else 1]
        assert [shard.counts.uncertain for shard in shards] == [0, 0]
        assert shards[0].counts.resent == 0, "not before they are attempted"
        assert intent_of(await quiet.row()) is None
        for shard in shards:
            assert shard.counts == _counted(finished, shard.number)

    run(finished, body)


@pytest.mark.parametrize("states", [("failed",), ("uncertain",)])
def test_only_who_is_meant_is_tried_again(finished: CampaignFiles, states: tuple[str, ...]) -> None:
    """Failed without uncertain, uncertain without failed."""

    async def body(quiet: Quiet, _made: Parts) -> None:
        await quiet.store_call(retries.begin, 1, states, NOW + 50)
        shards = await quiet.finish(finished)
        failed, uncertain = sum(s.counts.failed for s in shards), sum(s.counts.uncertain for s in shards)
        assert (failed, uncertain) == ((0, 2) if states == ("failed",) else (5, 0))

    run(finished, body)


def test_nobody_is_lent_again_in_the_second_of_the_decision(finished: CampaignFiles) -> None:
    """Who failed again in it could not be told from who is meant, and would be tried a second time after a crash."""

    async def body(quiet: Quiet, _made: Parts) -> None:
        now_s = [NOW + 50]
        quiet.now_s = lambda: now_s[0]
        await quiet.store_call(retries.begin, 1, BOTH, NOW + 50)
        taking_up = asyncio.create_task(quiet.finish(finished))
        done, _ = await asyncio.wait([taking_up], timeout=0.3)
        assert not done
        assert _counted(finished, 1).failed == 4
        now_s[0] += 1
        shards = await taking_up
        assert [shard.counts.deferred for shard in shards] == [6, 1]

    run(finished, body)


def test_a_fault_of_ours_is_answered(finished: CampaignFiles) -> None:
    """Whatever it is: who asked for the retry is told, and does not wait for ever."""

    async def body(quiet: Quiet, _made: Parts) -> None:
        tasks: list[asyncio.Task[None]] = []
        quiet.task = lambda work: tasks.append(asyncio.ensure_future(work))
        with pytest.raises(EcmError) as told:  # there are no campaigns to look into
            await asyncio.wait_for(quiet.again.retry(1, BOTH), 10)
        assert told.value.code == "internal"
        with pytest.raises(AttributeError):
            await tasks[0]

    run(finished, body)


def test_suppressions_older_than_the_log_are_applied_and_the_bundle_moves_on(finished: CampaignFiles) -> None:
    """The last change of an address counts; who has it already is left; what the log has is left to it."""

    async def body(quiet: Quiet, made: Parts) -> None:
        await made.suppression.add(["u10@example.com", "u11@example.com", "u20@example.com", "u19@example.com"])
        await made.suppression.remove(["u11@example.com"])

    async def later(quiet: Quiet, made: Parts) -> None:
        await made.suppression.rebuild(None)  # no campaign was under way
        assert made.log.first_position == 6
        await quiet.store_call(retries.begin, 1, BOTH, NOW + 50)
        shards = await quiet.finish(finished)
        assert [shard.counts.suppressed for shard in shards] == [1, 1]
        assert [shard.counts.deferred for shard in shards] == [5, 0]
        row = await quiet.row()
        assert row.suppressed_position == 5
        path = quiet.state.bundle(1)
        assert bundle.read(path, instance=INSTANCE, campaign=1).suppressed_position == 5
        assert made.log.count == 0

    async def again(quiet: Quiet, made: Parts) -> None:
        """A log that has them needs nothing of that."""
        await made.suppression.rebuild(5)
        await quiet.store_call(retries.begin, 1, BOTH, NOW + 50)
        await quiet.finish(finished)
        assert (await quiet.row()).suppressed_position == 5

    for life in (body, later, again):
        run(finished, life)


def test_what_relays_said_is_counted_by_reply_the_most_frequent_first(campaign_files: CampaignFiles) -> None:  # noqa: F811
    """Words where they are kept, the code where not; shards nobody is deferred in are not opened."""
    campaign_files.send(1, dict.fromkeys(range(6), States.DEFERRED), text="451 4.7.1 Slow down")
    campaign_files.send(2, {0: States.DEFERRED, 1: States.DEFERRED, 2: States.SENT})
    campaign_files.state.replies(1, 2).unlink()
    campaign = campaign_of(1, {1: counts(deferred=6, next_s=1), 2: counts(deferred=2, next_s=1), 3: counts(sent=1)})

    async def body(quiet: Quiet, _made: Parts) -> None:
        found = await refusals(quiet, campaign)
        assert found == [("451 4.7.1 Slow down", 8)]  # one code, of which most have words
        second = campaign_of(1, {2: counts(deferred=2, next_s=1)})
        assert await refusals(quiet, second) == [("451 4.7.1", 2)]
        assert await refusals(quiet, dataclasses.replace(second, id=9)) == []  # files that cannot be read

    run(campaign_files, body)


def test_campaigns_that_give_up_soon_are_looked_at_more_often() -> None:
    """A quarter of the time, a second at least, half a minute at most."""
    assert look_s([]) == 30
    assert look_s([campaign_of(1), campaign_of(2, give_up_s=8)]) == 2
    assert look_s([campaign_of(1, give_up_s=1)]) == 1


def test_a_shard_that_is_held_is_lent_to_nobody_and_keeps_its_campaign_open() -> None:
    """Until the broker has changed it."""
    campaign = campaign_of(1, {1: counts(deferred=1, next_s=5), 2: counts(sent=1)})
    campaign.held = {1, 2}
    campaign.file(campaign.shards[1])
    assert campaign.due(9) == (None, None)
    campaign.held = {2}
    campaign.file(campaign.shards[1])
    assert campaign.due(9) == (None, 1)
    over = campaign_of(1, {1: counts(sent=1)}, held={1}, cancelling=True)
    assert not over.concluded
    assert not over.may_end
