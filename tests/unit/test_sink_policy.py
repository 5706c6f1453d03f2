"""Who is refused: by chance, always the same ones, or because the address says so."""

from __future__ import annotations

import pytest

from actors.sink.magic import MAGIC, MAGIC_RE, Point, Then
from actors.sink.policy import GREYLIST_S, Policy, Shares
from actors.sink.record import COUNTERS

PEOPLE = [b"user%d@example.org" % n for n in range(4000)]


def test_the_shares_are_kept_and_do_not_depend_on_the_run() -> None:
    """A tenth deferred and a fifth bounced, the same people each time; another seed, other people."""
    first, again, other = (Policy(Shares(defer=0.1, bounce=0.2), seed) for seed in (1, 1, 2))
    counters = [fate and fate.counter for fate in map(first.fate, PEOPLE)]
    assert counters == [fate and fate.counter for fate in map(again.fate, PEOPLE)]
    assert counters != [fate and fate.counter for fate in map(other.fate, PEOPLE)]
    assert counters.count("deferred") == pytest.approx(400, abs=60)
    assert counters.count("bounced") == pytest.approx(800, abs=80)


def test_a_deferred_recipient_is_accepted_later_and_a_bounced_one_never() -> None:
    """The second attempt of everybody: only the bounced are refused again."""
    policy = Policy(Shares(defer=0.3, bounce=0.3))
    first = {person: policy.fate(person) for person in PEOPLE}
    second = {person: policy.fate(person) for person in PEOPLE}
    assert {fate.counter for fate in second.values() if fate} == {"bounced"}
    assert {p for p, fate in second.items() if fate} == {
        p for p, fate in first.items() if fate and fate.counter == "bounced"
    }


def test_the_extremes_are_everybody_and_nobody() -> None:
    """A share of 1 refuses all, of 0 none."""
    assert all(Policy(Shares(bounce=1.0)).fate(person) for person in PEOPLE)
    assert all(Policy(Shares(defer=1.0)).fate(person) for person in PEOPLE)
    assert not any(Policy().fate(person) for person in PEOPLE)


@pytest.mark.parametrize(
    ("address", "point", "code", "close"),
    [
        (b"defer@example.org", Point.RCPT, b"450", False),
        (b"DEFER+7@example.org", Point.RCPT, b"450", False),
        (b"bounce+a+b@example.org", Point.RCPT, b"550", False),
        (b"421@example.org", Point.RCPT, b"421", True),
        (b"drop-before@example.org", Point.DATA, None, True),
        (b"drop-after+9@example.org", Point.BODY, None, True),
        (b"rcpt-452-4.2.2@example.org", Point.RCPT, b"452", False),
        (b"data-554@example.org", Point.DATA, b"554", False),
        (b"body-554-5.7.1+3@example.org", Point.BODY, b"554", False),
        (b"body-421@example.org", Point.BODY, b"421", True),
    ],
)
def test_magic_addresses_say_what_happens(address: bytes, point: Point, code: bytes | None, close: bool) -> None:
    """The local part names the fate, a tag keeps several apart, and it is the same at each attempt."""
    policy = Policy()
    for _ in range(3):
        fate = policy.fate(address)
        assert fate is not None
        closes = fate.then in (Then.CLOSE, Then.DROP)
        assert (fate.point, fate.reply and fate.reply[:3], closes) == (point, code, close)


@pytest.mark.parametrize(
    "address", [b"defer-once@example.org", b"drop-after-once+1@example.org", b"body-554-once@x.org"]
)
def test_once_means_the_first_attempt_only(address: bytes) -> None:
    """Refused, then accepted, whatever the spelling."""
    policy = Policy()
    assert policy.fate(address) is not None
    assert policy.fate(address.upper().lower()) is None


@pytest.mark.parametrize("address", [b"deferred@example.org", b"x+defer@example.org", b"4211@example.org", b"defer"])
def test_what_only_looks_like_magic_is_ordinary(address: bytes) -> None:
    """Only the whole local part before a tag counts."""
    assert MAGIC_RE.match(address) is None
    assert Policy().fate(address) is None


def test_every_magic_name_is_found_and_has_its_fate_and_a_counter() -> None:
    """No row of the table is dead, none hides another, and each is counted."""
    for magic in MAGIC:
        for address in (f"{magic.name}@example.org", f"{magic.name.upper()}+1@example.org"):
            assert Policy().fate(address.encode()) == magic.fate
        policy = Policy()
        once = f"{magic.name}-once@example.org".encode()
        assert [policy.fate(once), policy.fate(once)] == [magic.fate, None]
        assert magic.fate.counter in COUNTERS


def test_greylisting_takes_nobody_at_first_and_everybody_later() -> None:
    """A stranger waits until the time has passed since its first attempt, not since its last."""
    now = [100.0]
    policy = Policy(greylist_s=30.0, clock=lambda: now[0])
    told = []
    for at in (100.0, 110.0, 129.9, 130.0, 131.0):
        now[0] = at
        fate = policy.fate(b"anna@example.org" if at != 110.0 else b"ANNA@example.org")
        told.append(fate and fate.counter)
    assert told == ["greylisted"] * 3 + [None] * 2


def test_one_address_can_ask_for_greylisting() -> None:
    """greylist@, where the server does not do it by itself: nobody else waits."""
    now = [0.0]
    policy = Policy(clock=lambda: now[0])
    assert policy.fate(b"greylist@example.org") is not None
    assert policy.fate(b"anna@example.org") is None
    now[0] = GREYLIST_S
    assert policy.fate(b"greylist@example.org") is None


def test_throttled_and_dropped_ones_come_through_the_second_time() -> None:
    """All three ways of dropping occur, always the same for the same people."""
    shares = Shares(throttle=0.2, drop=0.3)
    first, again = Policy(shares, seed=3), Policy(shares, seed=3)
    fates = [first.fate(person) for person in PEOPLE]
    assert fates == [again.fate(person) for person in PEOPLE]
    counters = [fate and fate.counter for fate in fates]
    assert counters.count("throttled") == pytest.approx(800, abs=80)
    for drop in ("dropped_before", "dropped_during", "dropped_after"):
        assert counters.count(drop) == pytest.approx(400, abs=60)
    assert not any(first.fate(person) for person in PEOPLE)


def test_its_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten: strangers again."""
    monkeypatch.setattr("actors.sink.policy.REMEMBERED", 100)
    policy = Policy(Shares(defer=1.0))
    for person in PEOPLE:
        assert policy.fate(person) is not None
    assert len(policy._first_s) == 100
    assert [policy.fate(PEOPLE[-1]), policy.fate(PEOPLE[0]) is None] == [None, False]
