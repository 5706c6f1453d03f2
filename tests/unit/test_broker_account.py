"""The account of a campaign (broker/account.py): counts that sum, rates, and what is not known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from broker.account import ACCOUNT_COUNTS, account_of, count_open, counts_map, ended_account, rate_of
from broker.store.campaigns import CampaignRow
from shm.files.ledger import Ledger, States
from tests.fixtures.campaigns_running import campaign_of, counts

IDENTITY: dict[str, Any] = {"instance": "ab" * 16, "campaign": 1, "shard": 1}


def test_nine_counts_sum_to_the_audience_and_duplicates_are_not_of_it() -> None:
    """Claimed and sending are in flight."""
    found = counts_map(counts(pending=1, claimed=2, sending=3, sent=4, deferred=5, bounced=6, duplicate=7))
    assert found["audience"] == 21
    assert sum(found[name] for name in ACCOUNT_COUNTS) == 21
    assert (found["in_flight"], found["pending"]) == (5, 1)


def test_open_ledgers_are_counted_as_they_are(tmp_path: Path) -> None:
    """A shard that is out is read from its file, the others are known."""
    path = tmp_path / "ledger"
    Ledger.create(path, **IDENTITY, rows=5)
    ledger = Ledger.open(path, **IDENTITY, writable=True)
    ledger.claim([0, 1])
    ledger.sending(0, 100)
    ledger.conclude(0, States.SENT, 250, None, 0, 100)
    total = count_open(counts(pending=10, sent=1), [ledger])
    ledger.close()
    assert (total.pending, total.sent, total.in_flight, total.attempts) == (13, 2, 1, 1)


def test_a_rate_looks_back_five_seconds() -> None:
    """Older samples do not matter; without any the rate is 0."""
    samples = [(0.0, 0), (10.0, 100), (12.0, 300)]
    assert rate_of(samples, 15.0, 600) == 100.0
    assert rate_of(samples, 100.0, 600) == 0.0
    assert rate_of([], 1.0, 5) == 0.0


def test_the_time_between_an_end_and_a_retry_does_not_count() -> None:
    """Ten seconds of sending, an hour of nothing, five seconds of the retry: fifteen; before anything new, ten."""
    campaign = campaign_of(1, {1: counts(sent=3)})
    campaign.facts["rests"] = [[1010.0, 4610.0]]
    first_ns, second_ns = 1000 * 10**9, 10**9

    def seconds(last_s: int) -> float:
        settled = replace(campaign.settled, first_attempt_ns=first_ns, last_conclusion_ns=last_s * second_ns)
        return float(account_of(campaign, settled, 0.0, None)["seconds"])

    assert seconds(1010) == 10.0
    assert seconds(4615) == 15.0


def test_a_campaign_under_way_tells_what_is_known_and_leaves_out_no_key() -> None:
    """No rate, no estimate; a retry is named while one is waited for."""
    campaign = campaign_of(1, {1: counts(pending=4), 2: counts(deferred=1, next_s=1_700_000_000)})
    account = account_of(campaign, campaign.settled, 2.0, None)
    assert (account["eta_s"], account["next_attempt"]) == (2.0, "2023-11-14T22:13:20.000Z")
    assert account_of(campaign, campaign.settled, 0.0, None)["eta_s"] is None
    row = CampaignRow(1, "x", "draft", None, 5.0, None, None, None, {}, None, None)
    draft = ended_account(row)
    assert draft.keys() == account.keys()
    assert draft["audience"] is None
    ended = CampaignRow(1, "x", "finished", None, 5.0, 6.0, 9.0, None, {}, {"seconds": 2.0, "sent": 30}, None)
    assert ended_account(ended)["per_second"] == 15.0
