"""The relays as the broker sees them (broker/relays.py): shares of connections, and when one is down."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Iterator

import pytest

from broker import relays as module
from broker.contract.relay import Relay
from broker.contract.settings import Settings
from broker.relays import Relays, allowances
from shm.arena import Arena, Shape
from shm.live.faults import FaultTable
from shm.live.relays import CONNECTIONS, FAILURES, RelayTable

ROWS = [1, 2, 3]


@pytest.fixture
def arena() -> Iterator[Arena]:
    """An arena of three senders."""
    made = Arena.create(f"/ecm-{secrets.token_hex(6)}", Shape(actors=4, slots=1, relays=4), "0" * 12, "boot")
    yield made
    made.close()
    Arena.unlink(made.name)


def relays_of(arena: Arena, **connections: int) -> Relays:
    """`relays_of(arena, main=20)`."""
    made = {
        name: Relay.from_map({"name": name, "host": "127.0.0.1", "port": 25, "tls": "none", "connections": number})
        for name, number in connections.items()
    }
    return Relays(Settings(relays=made), RelayTable(arena), FaultTable(arena), ROWS)


@pytest.mark.parametrize("senders", [1, 2, 3, 7])
@pytest.mark.parametrize("connections", [1, 2, 6, 20])
def test_shares_of_connections_sum_to_what_the_relay_allows(connections: int, senders: int) -> None:
    """They differ by one at most, the first ones having more."""
    shares = allowances(connections, senders)
    assert sum(shares) == connections
    assert len(shares) == senders
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] <= 1


def test_a_sender_is_open_to_the_relays_it_has_a_share_of(arena: Arena) -> None:
    """With fewer connections than senders the last ones have none."""
    relays = relays_of(arena, wide=20, narrow=1)
    assert [relays.open_to(row) for row in ROWS] == [{0, 1}, {0}, {0}]
    assert relays.open_to(9) == frozenset()


def test_a_relay_is_down_when_it_only_fails_for_a_while_and_up_when_a_connection_opens(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has a connection is not down, whatever else fails."""
    relays = relays_of(arena, main=20)
    words, now = RelayTable(arena).words(1, 0), [100.0]
    monkeypatch.setattr("broker.relays.time.monotonic", lambda: now[0])
    words[FAILURES] = 1
    relays.watch()
    now[0] += module.DOWN_S
    words[FAILURES] = 2
    words[CONNECTIONS] = 1
    relays.watch()
    assert relays.down([0]) is None
    words[CONNECTIONS] = 0
    for _ in range(2):
        now[0] += module.DOWN_S
        words[FAILURES] += 1
        relays.watch()
    assert "cannot be reached" in (relays.down([0]) or "")
    assert relays.views()[0].state == "tripped"
    assert relays.down([]) is None
    words[CONNECTIONS] = 1
    relays.watch()
    assert relays.down([0]) is None


def test_a_check_whose_process_dies_is_an_answer(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that cannot be started: the campaign goes back to draft and says why."""
    relays = relays_of(arena, main=20)
    for program in ("/bin/false", "/nonexistent/python"):
        monkeypatch.setattr(sys, "executable", program)
        answer = asyncio.run(relays.check("main"))
        assert not answer["ok"]
        assert answer["error"]["code"] == "internal"
        assert "relay `main` could not be checked" in answer["error"]["message"]
