"""Turns among leases (actors/sender/lanes.py): by weight, and a share for retries."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from hypothesis import given
from hypothesis import strategies as st

from actors.sender.lanes import Lanes

if TYPE_CHECKING:
    from actors.sender.lease import Lease


def lease(campaign: int, weight: int = 1, *, retry: bool = False) -> Lease:
    stands = SimpleNamespace(offer=SimpleNamespace(campaign=campaign), weight=weight, retry=retry)
    return cast("Lease", stands)


def turns(lanes: Lanes, n: int) -> list[Lease]:
    taken = [lanes.alone or lanes.turn() for _ in range(n)]
    assert None not in taken
    return cast("list[Lease]", taken)


def test_one_lease_alone_has_every_turn() -> None:
    """It is `alone`, fresh or retry; when it goes nobody has a turn."""
    for only in (lease(7), lease(7, retry=True)):
        lanes = Lanes()
        assert not lanes
        assert lanes.turn() is None
        lanes.append(only)
        assert lanes
        assert lanes.alone is only
        assert turns(lanes, 3) == [only] * 3
        lanes.remove(only)
        assert not lanes
        assert lanes.alone is None
        assert lanes.turn() is None


def test_campaigns_take_turns_by_their_weight_however_many_leases_they_have() -> None:
    """Weights 3 and 1: three messages in four, shared by the first campaign's two leases."""
    one, two, other = lease(7, 300), lease(7, 300), lease(8, 100)
    lanes = Lanes()
    for each in (one, other, two):
        lanes.append(each)
    counted = Counter(map(id, turns(lanes, 400)))
    assert counted[id(other)] == 100
    assert counted[id(one)] == counted[id(two)] == 150


def test_campaigns_of_one_weight_change_places_at_each_message() -> None:
    """In lowest terms: no bursts because weights are large."""
    one, other = lease(7, 1000), lease(8, 1000)
    lanes = Lanes()
    lanes.append(one)
    lanes.append(other)
    assert turns(lanes, 6) == [one, other] * 3


def test_retries_have_their_share_while_fresh_mail_waits_and_all_of_it_else() -> None:
    """A quarter of the turns; when the fresh lease has gone they are alone."""
    fresh, retry, other = lease(7), lease(8, 1000, retry=True), lease(9, retry=True)
    lanes = Lanes(0.25)
    for each in (fresh, retry, other):
        lanes.append(each)
    taken = turns(lanes, 400)
    assert 299 <= taken.count(fresh) <= 301
    lanes.remove(other)
    assert 299 <= turns(lanes, 400).count(fresh) <= 301
    lanes.remove(fresh)
    assert turns(lanes, 3) == [retry] * 3


@given(
    kinds=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.booleans()), min_size=1, max_size=6),
    share=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
)
def test_everybody_who_stands_there_has_turns(kinds: list[tuple[int, int, bool]], share: float) -> None:
    """Whatever the weights and shares: nobody is passed over for ever, and only those who stand there have any."""
    weights = {campaign: weight for campaign, weight, _ in kinds}
    standing = [lease(campaign, weights[campaign], retry=retry) for campaign, _, retry in kinds]
    lanes = Lanes(share)
    for each in standing:
        lanes.append(each)
    seen = {id(each) for each in turns(lanes, 3000)}
    assert seen == {id(each) for each in standing}
    for each in standing:
        lanes.remove(each)
    assert not lanes
