"""When a campaign pauses by itself."""

from broker.breaker import Tally, judge
from broker.contract.campaign import Breaker


def test_nothing_is_judged_before_enough_attempts_were_made() -> None:
    """All of 999 attempts may bounce: one more is needed for a verdict."""
    breaker = Breaker()
    assert judge(breaker, Tally(attempted=999, bounced=999)) is None
    verdict = judge(breaker, Tally(attempted=1000, bounced=999))
    assert verdict is not None
    assert verdict.message == "99.9% of 1,000 attempts bounced, the limit is 10%"


def test_a_share_at_its_limit_is_allowed_and_one_above_it_is_not() -> None:
    """The limit is the largest share that passes."""
    breaker = Breaker(bounced=0.10, after=10)
    assert judge(breaker, Tally(attempted=1000, bounced=100)) is None
    verdict = judge(breaker, Tally(attempted=1000, bounced=101))
    assert verdict is not None
    assert verdict.name == "bounced"


def test_a_limit_of_nothing_never_trips() -> None:
    """0 switches a breaker off."""
    breaker = Breaker(bounced=0, deferred=0, sender_fault=0, after=1)
    assert judge(breaker, Tally(attempted=50, bounced=50, deferred=50, sender_fault=50)) is None


def test_our_own_fault_is_named_before_what_it_looks_like() -> None:
    """Deferrals for a block list are counted as deferrals too; the cause is what the operator needs."""
    verdict = judge(Breaker(after=10), Tally(attempted=100, deferred=90, sender_fault=90))
    assert verdict is not None
    assert verdict.name == "sender_fault"


def test_only_what_came_after_a_resume_is_judged() -> None:
    """A tally minus the one at the resume has the new attempts alone."""
    before = Tally(attempted=2000, sent=1000, bounced=1000)
    now = Tally(attempted=3000, sent=1990, bounced=1010)
    assert judge(Breaker(), now.minus(before)) is None
