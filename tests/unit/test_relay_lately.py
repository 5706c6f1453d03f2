"""What a relay said in the last minutes (broker/relay_lately.py)."""

from __future__ import annotations

from broker.relay_health import Sight
from broker.relay_lately import SPAN_S, Lately, Said


def test_what_is_minutes_old_speaks_against_nobody() -> None:
    """It is summed while it is new, and gone afterwards, whether or not anything follows."""
    lately = Lately()
    lately.look(100.0, Sight(accepted=3, blamed=50))
    lately.look(101.0, Sight(throttled=2))
    assert lately.said(101.0) == Said(3, 50, 2)
    lately.look(100.0 + SPAN_S - 1, Sight(accepted=7))
    assert lately.said(100.0 + SPAN_S - 1) == Said(10, 50, 2)
    assert lately.said(100.0 + SPAN_S + 1) == Said(accepted=7)
    assert lately.said(100.0 + 3 * SPAN_S) == Said()


def test_what_it_keeps_is_bounded() -> None:
    """Looks four times a second for an hour leave as little as those of the last minutes."""
    lately = Lately()
    for quarter in range(4 * 3600):
        lately.look(quarter / 4, Sight(accepted=1))
    assert lately.said(3600.0).accepted <= 4 * (SPAN_S + 11)
