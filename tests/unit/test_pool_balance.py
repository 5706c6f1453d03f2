"""Pools balanced slice by slice: the balance alone (broker/pool_balance.py), and under the law of rates."""

from __future__ import annotations

import pytest

from broker.pool_balance import Balance
from broker.rates import Rates, Route
from shm.files.windows import WindowFile
from tests.fixtures.rate_sim import MS, Limits, S, Sender, broken

NOW = 10**15
HEAVY, LIGHT = 0, 1


class Pool:
    """A campaign on two relays, heavy = 3 and light = 1, and its leases' senders in simulated time.

    works   relay -> tokens that any lease may be granted for it now
    """

    def __init__(self, campaign: Limits, leases: int = 2, ready: int = 1 << 30, **relays: Limits) -> None:
        self.works = {HEAVY: 1 << 30, LIGHT: 1 << 30}
        self.rates = Rates(lambda _lease, relay: self.works[relay])
        self.now = NOW
        owners = {"campaign-1": campaign, "relay-heavy": relays.get("heavy", Limits()),
                  "relay-light": relays.get("light", Limits())}  # fmt: skip
        self.files = {owner: WindowFile.memory(NOW) for owner in owners}
        for owner, limits in owners.items():
            self.rates.add_owner(owner, limits, self.files[owner], NOW)
        routes = [Route(HEAVY, 3, "relay-heavy"), Route(LIGHT, 1, "relay-light")]
        self.senders = [Sender(number, ready, clock_ns=NOW) for number in range(1, leases + 1)]
        for sender in self.senders:
            self.rates.open_lease(sender.number, ["campaign-1"], NOW, routes)
        self.ring: dict[int, list[list[int]]] = {sender.number: [] for sender in self.senders}
        self.sent = {HEAVY: 0, LIGHT: 0}
        self.dates: dict[int, list[int]] = {HEAVY: [], LIGHT: []}

    def step(self, ns: int = 5 * MS) -> None:
        """Let time pass, then tick. What a sender attempts is counted for the relay of its slice, in their order."""
        self.now += ns
        for sender in self.senders:
            self._run(sender)
            self.rates.observe(sender.number, sender.spent, sender.returned, self.now, sender.spent_ns)
            self.rates.want(sender.number, sender.wanted)
        by_number = {sender.number: sender for sender in self.senders}
        for grant in self.rates.tick(self.now):
            by_number[grant.lease].take(grant)
            self.ring[grant.lease].append([grant.n, grant.relay])

    def _run(self, sender: Sender) -> None:
        """Run a sender and see which relays its attempts and returns were for."""
        while sender.clock_ns < self.now:
            spent, returned = sender.spent, sender.returned
            sender.run(min(sender.clock_ns + MS // 5, self.now))
            self._use(sender, sender.returned - returned, attempted=False)
            self._use(sender, sender.spent - spent, attempted=True)

    def _use(self, sender: Sender, n: int, *, attempted: bool) -> None:
        while n:
            piece = self.ring[sender.number][0]
            used = min(n, piece[0])
            if attempted:
                self.sent[piece[1]] += used
                self.dates[piece[1]].extend([sender.last_ns] * used)
            piece[0] -= used
            n -= used
            if not piece[0]:
                self.ring[sender.number].pop(0)


def test_the_relay_furthest_below_its_weight_is_next() -> None:
    """Turns of four: three to the heavy one for each of the light one's, from the first on."""
    balance, offered = Balance(), {HEAVY: 0, LIGHT: 0}
    weights = {HEAVY: 3, LIGHT: 1}
    for _ in range(100):
        balance.forgive(weights)
        relay = balance.choose(weights)
        balance.charge(relay, 4, weights[relay])
        offered[relay] += 4
        assert abs(offered[HEAVY] - 3 * offered[LIGHT]) <= 12
    assert offered == {HEAVY: 300, LIGHT: 100}


def test_who_could_not_be_used_for_a_while_is_not_owed_everything() -> None:
    """Back again, it gets a little more at once and then its share."""
    balance, weights = Balance(), {HEAVY: 1, LIGHT: 1}
    for _ in range(500):
        balance.charge(balance.choose([HEAVY]), 4, 1)
    offered = {HEAVY: 0, LIGHT: 0}
    for _ in range(50):
        balance.forgive(weights)
        relay = balance.choose(weights)
        balance.charge(relay, balance.turn, 1)
        offered[relay] += 1
    assert 25 <= offered[LIGHT] <= 28


@pytest.mark.parametrize("per_second", [20, 100, 1000])
@pytest.mark.parametrize("leases", [1, 4])
def test_a_small_campaign_keeps_its_weights_within_a_few_messages(per_second: int, leases: int) -> None:
    """Three to one over 400 messages under any rate, however many leases share them; and the rate is kept."""
    limits = Limits(per_second=per_second)
    pool = Pool(limits, leases, ready=400 // leases)
    for _ in range(int(400 / per_second * 210)):
        pool.step()
    assert sum(pool.sent.values()) >= 399
    assert abs(pool.sent[HEAVY] - 300) <= 8
    attempts = sorted([*pool.dates[HEAVY], *pool.dates[LIGHT]])
    assert attempts[-1] - attempts[0] <= 400 / per_second * S * 1.03


def test_a_relay_that_trips_loses_its_share_at_once_and_the_rate_is_kept() -> None:
    """What the campaign may send goes through the other; one that is probed gets a token at a time."""
    pool = Pool(Limits(per_second=200))
    for _ in range(200):
        pool.step()
    pool.works[HEAVY] = 0
    for _ in range(20):
        pool.step()  # what was granted before is used up
    before = dict(pool.sent)
    for _ in range(200):
        pool.step()
    assert pool.sent[HEAVY] == before[HEAVY]
    assert pool.sent[LIGHT] - before[LIGHT] >= 0.97 * 200
    pool.works[HEAVY] = 1
    before = dict(pool.sent)
    for _ in range(200):
        pool.step()
    assert pool.sent[HEAVY] - before[HEAVY] > 10
    pool.works = {HEAVY: 0, LIGHT: 0}
    for _ in range(20):
        pool.step()
    before = dict(pool.sent)
    for _ in range(20):
        pool.step()
    assert pool.sent == before, "none works: nothing is granted"


def test_a_relays_own_limit_leaves_the_rest_of_the_campaigns_rate_to_the_others() -> None:
    """And holds, across slices for other relays in the same lease."""
    heavy = Limits(per_second=10, per_minute=100)
    pool = Pool(Limits(per_second=100), heavy=heavy)
    for _ in range(4000):
        pool.step()
    assert list(broken(heavy, pool.dates[HEAVY])) == []
    assert pool.sent[HEAVY] == 100
    assert sum(pool.sent.values()) >= 0.98 * 100 * 20


def test_windows_of_every_relay_are_settled_whatever_lapses() -> None:
    """Senders that stall and give back leave nothing outstanding, and no relay counts fewer than it was attempted."""
    pool = Pool(Limits(per_second=500), 3)
    for n in range(600):
        if n % 50 == 7:
            pool.senders[n // 50 % 3].stall((n % 7 + 1) * 40 * MS)
        pool.step()
    for sender in pool.senders:
        sender.ready = 0
        sender.wanted = 0
    for _ in range(40):
        pool.step()
    for sender in pool.senders:
        granted = pool.rates.granted(sender.number)
        pool.rates.close_lease(sender.number, sender.spent, granted - sender.spent)
    pool.rates.tick(pool.now + MS)
    assert [file.outstanding for file in pool.files.values()] == [0, 0, 0]
    assert pool.files["campaign-1"].spent_total == sum(pool.sent.values())
    assert pool.files["relay-heavy"].spent_total >= pool.sent[HEAVY]
    assert pool.files["relay-light"].spent_total >= pool.sent[LIGHT]
    over = pool.files["relay-heavy"].spent_total + pool.files["relay-light"].spent_total - sum(pool.sent.values())
    assert over <= 0.05 * sum(pool.sent.values())


def test_without_limits_a_slow_relay_does_not_hold_up_the_fast_one() -> None:
    """A relay that lets its slices lapse is put level, not served until it has caught up."""
    balance, weights = Balance(), {HEAVY: 3, LIGHT: 1}
    fast = 0
    for _ in range(100):
        balance.forgive(weights)
        relay, n = balance.choose(weights), balance.turn
        balance.charge(relay, n, weights[relay])
        if relay == HEAVY:
            balance.lapsed(HEAVY, n - 1, 3, weights)
        else:
            fast += n
    assert fast > 130
