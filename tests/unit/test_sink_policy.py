"""Who is refused: by chance, always the same ones, or because the address says so."""

from __future__ import annotations

import pytest

from actors.sink.policy import Point, Policy

PEOPLE = [b"user%d@example.org" % n for n in range(4000)]


def test_the_shares_are_kept_and_do_not_depend_on_the_run() -> None:
    """A tenth deferred and a fifth bounced, the same people each time; another seed, other people."""
    first, again, other = Policy(0.1, 0.2, seed=1), Policy(0.1, 0.2, seed=1), Policy(0.1, 0.2, seed=2)
    counters = [fate and fate.counter for fate in map(first.fate, PEOPLE)]
    assert counters == [fate and fate.counter for fate in map(again.fate, PEOPLE)]
    assert counters != [fate and fate.counter for fate in map(other.fate, PEOPLE)]
    assert counters.count("deferred") == pytest.approx(400, abs=60)
    assert counters.count("bounced") == pytest.approx(800, abs=80)


def test_a_deferred_recipient_is_accepted_later_and_a_bounced_one_never() -> None:
    """The second attempt of everybody: only the bounced are refused again."""
    policy = Policy(0.3, 0.3)
    first = {person: policy.fate(person) for person in PEOPLE}
    second = {person: policy.fate(person) for person in PEOPLE}
    assert {fate.counter for fate in second.values() if fate} == {"bounced"}
    assert {p for p, fate in second.items() if fate} == {
        p for p, fate in first.items() if fate and fate.counter == "bounced"
    }


def test_the_extremes_are_everybody_and_nobody() -> None:
    """A share of 1 refuses all, of 0 none."""
    assert all(Policy(bounce=1.0).fate(person) for person in PEOPLE)
    assert all(Policy(defer=1.0).fate(person) for person in PEOPLE)
    assert not any(Policy().fate(person) for person in PEOPLE)
    assert all(Policy().ordinary(person) for person in PEOPLE)


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
        assert (fate.point, fate.reply and fate.reply[:3], fate.close) == (point, code, close)
        assert not policy.ordinary(address)


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
    assert Policy().ordinary(address)
    assert Policy().fate(address) is None
