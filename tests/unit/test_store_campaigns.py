"""What the store keeps of campaigns, jobs and requests, over real files."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.contract.errors import EcmError
from broker.store import campaigns, jobs, requests
from broker.store.store import Store

SPEC = {"name": "news", "html": "<p>Grüße {{ name }}</p>", "rate": {"per_second": 100}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "store.db")
    yield opened
    opened.close()


def running(store: Store, name: str, position: int | None) -> int:
    """A campaign whose snapshot is ready."""
    number = campaigns.create(store, name, SPEC, 1.0)
    campaigns.set_state(store, number, "preparing", launched=2.0)
    campaigns.ready(store, number, [], {"audience": 1, "suppressed_position": position})
    return number


def test_a_campaign_is_found_by_id_and_by_name_with_all_that_was_kept(store: Store) -> None:
    """Id, digits and name lead to the same row, spec and times as they were given."""
    number = campaigns.create(store, "news", SPEC, 1700000000.25)
    row = campaigns.get(store, number)
    assert row == campaigns.get(store, "news") == campaigns.get(store, str(number))
    assert row is not None
    assert (row.id, row.name, row.state, row.created) == (1, "news", "draft", 1700000000.25)
    assert (row.spec, row.counts, row.reason, row.launched, row.finished) == (SPEC, None, None, None, None)


@pytest.mark.parametrize("campaign", [0, -1, 2, 1 << 70, "2", "9" * 400, "", "News", "news "])
def test_a_campaign_nobody_made_is_none(store: Store, campaign: int | str) -> None:
    """Whatever the id or name looks like, an unknown campaign is None, never an error of the driver."""
    campaigns.create(store, "news", SPEC, 1.0)
    assert campaigns.get(store, campaign) is None


def test_a_name_belongs_to_one_campaign(store: Store) -> None:
    """A taken name is refused with who has it and since when."""
    campaigns.create(store, "news", SPEC, 1700000000.0)
    with pytest.raises(EcmError, match=r"campaign 1, draft, created 2023-11-14T22:13:20.000Z") as caught:
        campaigns.create(store, "news", SPEC, 2.0)
    assert caught.value.code == "campaign_exists"


def test_a_draft_is_replaced_and_nothing_else_is(store: Store) -> None:
    """A new content makes a draft as new; a campaign that was launched keeps its own."""
    number = campaigns.create(store, "news", SPEC, 1.0)
    campaigns.set_state(store, number, "draft", {"code": "no_recipients"})
    campaigns.replace_draft(store, number, {"name": "news", "html": "other"}, 5.0)
    row = campaigns.get(store, number)
    assert row is not None
    assert (row.spec["html"], row.created, row.reason) == ("other", 5.0, None)
    campaigns.set_state(store, number, "running")
    with pytest.raises(EcmError) as caught:
        campaigns.replace_draft(store, number, SPEC, 6.0)
    assert caught.value.code == "wrong_state"


def test_shards_counts_and_running_arrive_together(store: Store) -> None:
    """When the snapshot is ready the campaign runs and its shards are known, each once."""
    number = campaigns.create(store, "news", SPEC, 1.0)
    campaigns.set_state(store, number, "preparing", launched=2.0)
    result = {"rows": 5, "audience": 3, "shards": [[1, "other", 2], [2, "gmail.com", 1]], "suppressed_position": 9}
    campaigns.ready(store, number, result["shards"], result)
    row = campaigns.get(store, number)
    assert row is not None
    assert (row.state, row.launched, row.suppressed_position) == ("running", 2.0, 9)
    assert row.counts == {"rows": 5, "audience": 3, "suppressed_position": 9}
    assert campaigns.shards(store, number) == [
        campaigns.ShardRow(1, "other", 2),
        campaigns.ShardRow(2, "gmail.com", 1),
    ]


def test_a_campaign_cancelled_while_it_was_prepared_stays_cancelled(store: Store) -> None:
    """The end of a snapshot does not bring a cancelled campaign back."""
    number = campaigns.create(store, "news", SPEC, 1.0)
    campaigns.set_state(store, number, "cancelled", finished=2.0)
    campaigns.ready(store, number, [(1, "other", 1)], {"audience": 1})
    row = campaigns.get(store, number)
    assert row is not None
    assert row.state == "cancelled"


def test_the_end_keeps_the_account_beside_the_snapshots_numbers(store: Store) -> None:
    """An ended campaign still tells rows and rejects_file, and its final counts."""
    number = running(store, "news", 0)
    campaigns.ready(store, number, [], {"rows": 4, "audience": 3, "rejects_file": "/x/rejects.csv"})
    campaigns.finish(store, number, "finished", {"audience": 3, "sent": 3}, 77.5)
    row = campaigns.get(store, number)
    assert row is not None
    assert row.counts == {"rows": 4, "audience": 3, "rejects_file": "/x/rejects.csv", "sent": 3}
    assert (row.state, row.finished) == ("finished", 77.5)


def test_a_start_takes_up_what_had_not_ended(store: Store) -> None:
    """Drafts and ended campaigns are left alone; the others come oldest first."""
    numbers = [running(store, f"c{n}", n) for n in range(1, 6)]
    campaigns.set_state(store, numbers[0], "paused", {"code": "paused"})
    campaigns.set_state(store, numbers[1], "waiting", {"code": "disk"})
    campaigns.finish(store, numbers[2], "cancelled", {}, 9.0)
    campaigns.set_state(store, numbers[3], "draft")
    found = campaigns.unfinished(store)
    assert [(row.id, row.state) for row in found] == [(1, "paused"), (2, "waiting"), (5, "running")]
    assert found[0].spec == SPEC


def test_the_log_of_suppressions_is_needed_from_the_oldest_unfinished_snapshot_on(store: Store) -> None:
    """Ended campaigns and drafts need none of it; without a snapshot in use, none is needed."""
    assert campaigns.oldest_position(store) is None
    old, newer, ended = (running(store, name, position) for name, position in (("a", 40), ("b", 70), ("c", 3)))
    campaigns.finish(store, ended, "finished", {}, 9.0)
    assert campaigns.oldest_position(store) == 40
    campaigns.finish(store, old, "finished", {}, 9.0)
    assert campaigns.oldest_position(store) == 70
    campaigns.finish(store, newer, "finished", {}, 9.0)
    assert campaigns.oldest_position(store) is None


def test_listings_are_newest_first_and_without_templates(store: Store) -> None:
    """A listing names every campaign, or the newest few, and carries no message."""
    for n in range(1, 4):
        campaigns.create(store, f"c{n}", SPEC, float(n))
    campaigns.finish(store, 1, "finished", {}, 10.0)
    campaigns.finish(store, 2, "finished", {}, 20.0)
    assert [row.id for row in campaigns.listing(store)] == [3, 2, 1]
    assert [row.id for row in campaigns.listing(store, 2)] == [3, 2]
    assert [row.id for row in campaigns.recent(store, 15.0)] == [3, 2]
    assert all(row.spec == {} for row in campaigns.listing(store))


def test_an_id_is_never_used_again(store: Store) -> None:
    """The id after a removed campaign is a new one: files and events name campaigns by it."""
    first = campaigns.create(store, "a", SPEC, 1.0)
    with store.begin() as connection:
        connection.exec_driver_sql("DELETE FROM campaigns")
    assert campaigns.create(store, "b", SPEC, 1.0) == first + 1


def test_changing_a_campaign_nobody_made_is_said(store: Store) -> None:
    """A state, shards or an end for an unknown id is `unknown_campaign`."""
    for change in (
        lambda: campaigns.set_state(store, 7, "paused"),
        lambda: campaigns.ready(store, 7, [], {}),
        lambda: campaigns.finish(store, 7, "finished", {}, 1.0),
    ):
        with pytest.raises(EcmError) as caught:
            change()
        assert caught.value.code == "unknown_campaign"


def test_one_key_is_one_job(store: Store) -> None:
    """Asking twice under one key gives the first job; other work under it is refused."""
    first = jobs.create(store, "import", {"list": "a"}, 1.0, "k")
    assert jobs.create(store, "import", {"list": "a"}, 2.0, "k") == first
    assert jobs.create(store, "import", {"list": "a"}, 2.0).id != first.id
    with pytest.raises(EcmError, match="job 1") as caught:
        jobs.create(store, "import", {"list": "b"}, 2.0, "k")
    assert caught.value.code == "bad_request"


def test_a_job_ends_once(store: Store) -> None:
    """A result that comes twice, or after a failure, changes nothing; unfinished jobs are listed oldest first."""
    one, two, three = (jobs.create(store, "check", {"n": n}, 1.0).id for n in range(3))
    jobs.start(store, one)
    jobs.finish(store, two, {"rows": 5}, 2.0)
    jobs.fail(store, two, {"code": "internal"}, 3.0)
    jobs.start(store, two)
    assert [(row.id, row.state) for row in jobs.unfinished(store)] == [(one, "running"), (three, "queued")]
    row = jobs.get(store, two)
    assert (row.state, row.result, row.error, row.finished) == ("done", {"rows": 5}, None, 2.0)
    with pytest.raises(EcmError) as caught:
        jobs.get(store, 99)
    assert caught.value.code == "unknown_job"


def test_jobs_that_ended_are_kept_for_a_while_and_unfinished_ones_for_good(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store does not grow with every import ever made."""
    monkeypatch.setattr(jobs, "JOBS_KEPT", 3)
    pending = jobs.create(store, "import", {}, 1.0).id
    for _ in range(6):
        jobs.finish(store, jobs.create(store, "import", {}, 1.0).id, {}, 1.0)
    with pytest.raises(EcmError):
        jobs.get(store, 2)
    assert jobs.get(store, 6).state == "done"
    assert jobs.get(store, pending).state == "queued"


def test_a_kept_reply_is_given_again_to_the_same_request_only(store: Store) -> None:
    """The order of arguments does not matter; another operation or value under the key is refused."""
    request = requests.digest("campaign.pause", {"campaign": 1, "x": None})
    assert requests.kept(store, "k", request) is None
    requests.keep(store, "k", request, {"ok": True, "result": {"id": 1}}, 1.0)
    requests.keep(store, "k", request, {"ok": False}, 2.0)
    again = requests.digest("campaign.pause", {"x": None, "campaign": 1})
    assert requests.kept(store, "k", again) == {"ok": True, "result": {"id": 1}}
    with pytest.raises(EcmError) as caught:
        requests.kept(store, "k", requests.digest("campaign.resume", {"campaign": 1, "x": None}))
    assert (caught.value.code, caught.value.field) == ("bad_request", "key")


def test_the_oldest_replies_make_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies have a bound; the newest are kept."""
    monkeypatch.setattr(requests, "REQUESTS_KEPT", 3)
    for n in range(6):
        requests.keep(store, f"k{n}", b"r", {"n": n}, float(n))
    assert [requests.kept(store, f"k{n}", b"r") is not None for n in range(6)] == [False] * 3 + [True] * 3


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    """What a block did before it failed is undone, and the driver's error reaches nobody."""

    def half() -> None:
        with store.begin() as connection:
            connection.exec_driver_sql("INSERT INTO jobs (kind, state, args, created) VALUES ('x', 'queued', x'80', 1)")
            connection.exec_driver_sql("DELETE FROM nowhere")

    with pytest.raises(EcmError, match="no such table") as caught:
        half()
    assert caught.value.code == "io_failed"
    assert jobs.unfinished(store) == []
