"""The relays as the broker sees them (broker/relays.py, relay_watch.py): shares, trips, what is declared and kept."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Iterator
from typing import Any, cast

import pytest

from broker.contract.errors import EcmError
from broker.contract.settings import Settings
from broker.relay_health import DOWN_S
from broker.relay_watch import CLOSED_S
from broker.relays import MANY, PROBE_TOKENS, Relays
from broker.running import Origin
from shm.arena import Arena, Shape
from shm.live.faults import FaultTable
from shm.live.relays import (
    ACCEPTED,
    BLAMED,
    CLOSE_COUNT,
    CONNECTIONS,
    FAILURES,
    MODE,
    OPENING,
    STEPPED,
    RelayState,
    RelayTable,
)

ROWS = [1, 2, 3]
ENGINE_S = 1e9  # engine time where the scene's monotonic time is 100


class Scene:
    """Three senders, a clock that the test moves, and relays of these connections: `Scene(arena, main=20)`."""

    def __init__(self, arena: Arena, **connections: int) -> None:
        self.now = 100.0
        self.table = RelayTable(arena)
        self.faults = FaultTable(arena)
        self.obeyed = True  # whether senders' loops have gone round since any order
        self.relays = Relays(
            settings(**connections), self.table, self.faults, ROWS,
            now=lambda: self.now, seen=lambda _row, _since: self.obeyed, room=arena.shape.relays,
        )  # fmt: skip

    def says(self, row: int, index: int = 0, **words: int) -> None:
        """What a sender tells of a relay: `says(1, connections=2)`."""
        names = {"connections": CONNECTIONS, "failures": FAILURES, "accepted": ACCEPTED, "blamed": BLAMED,
                 "opening": OPENING, "mode": MODE, "stepped": STEPPED, "close_count": CLOSE_COUNT}  # fmt: skip
        for name, value in words.items():
            self.table.words(row, index)[names[name]] = value

    def look(self, later: float = 0.0) -> list[str]:
        """Look some time later; the events."""
        self.now += later
        return [news.event for news in self.relays.look(ROWS)]

    def share(self, work: dict[int, set[int]], index: int = 0) -> list[int]:
        """Share connections out for this work, in two rounds; the allowances as the senders read them."""
        self.relays.share(work)  # what is lowered now
        self.relays.share(work)  # is given to others now, if that was obeyed
        return [self.table.allowance(row, index) for row in ROWS]

    def fail(self) -> None:
        """Only failures for long enough."""
        for count in (1, 2):
            self.says(1, failures=self.table.words(1, 0)[FAILURES] + count)
            self.look(DOWN_S)


def settings(**connections: int) -> Settings:
    """Relays and a pool `both` of all of them."""
    relays = {name: {"host": f"{name}.example", "tls": "none", "connections": n} for name, n in connections.items()}
    pool = {"both": dict.fromkeys(connections, 1)} if connections else {}
    return Settings.model_validate({"relay": relays, "pool": pool})


@pytest.fixture
def arena() -> Iterator[Arena]:
    """An arena of three senders, with room for four relays."""
    made = Arena.create(f"/ecm-{secrets.token_hex(6)}", Shape(actors=4, slots=1, relays=4), "0" * 12, "boot")
    yield made
    made.close()
    Arena.unlink(made.name)


def test_connections_go_to_the_senders_that_have_work(arena: Arena) -> None:
    """Idle, each has a share; a single connection goes to whoever has work, and nobody else gets a lease for it."""
    scene = Scene(arena, wide=20, narrow=1)
    assert scene.share({}) == [7, 7, 6]
    assert [scene.relays.open_to(row) for row in ROWS] == [{0, 1}] * 3
    assert scene.share({2: {0, 1}}) == [0, 20, 0]
    assert scene.share({2: {0, 1}}, index=1) == [0, 1, 0]
    assert [scene.relays.open_to(row) for row in ROWS] == [{0}, {0, 1}, {0}]
    assert scene.relays.open_to(9) == frozenset()


def test_a_share_is_raised_only_when_the_lowering_is_obeyed(arena: Arena) -> None:
    """What another sender has open, is opening, or may be about to open counts against the relay's limit."""
    scene = Scene(arena, main=10)
    assert scene.share({1: {0}}) == [10, 0, 0]
    scene.says(1, connections=6, opening=2)
    scene.obeyed = False
    assert scene.share({1: {0}, 2: {0}}) == [5, 0, 0], "it may not have seen the order yet"
    scene.obeyed = True
    assert scene.share({1: {0}, 2: {0}}) == [5, 2, 0]
    scene.says(1, connections=5, opening=0)
    assert scene.share({1: {0}, 2: {0}}) == [5, 5, 0]
    scene.says(1, connections=5)
    scene.says(2, connections=5)
    scene.relays.died(1)
    assert scene.share({2: {0}}) == [0, 10, 0], "the dead hold none"


def test_a_relay_that_only_fails_trips_is_probed_by_one_connection_and_recovers(arena: Arena) -> None:
    """While it is tripped nobody may connect; the probe is one sender's, which alone may be lent work for it."""
    scene = Scene(arena, main=20)
    scene.says(1, failures=1)
    assert scene.look() == []
    scene.says(1, failures=2, connections=1)
    assert scene.look(DOWN_S) == [], "one that has a connection is not down, whatever else fails"
    scene.says(1, connections=0)
    scene.faults.note(1, "relay `main` (main.example:25): connection refused", 5)
    scene.fail()
    assert scene.relays.down([0]) == "relay `main` (main.example:25): connection refused"
    assert scene.relays.why_down([0]).code == "relay_unreachable"  # type: ignore[union-attr]
    assert scene.relays.views()[0].state == "tripped"
    assert scene.relays.down([]) is None
    assert scene.share({1: {0}}) == [0, 0, 0]
    assert scene.relays.open_to(1) == frozenset()
    assert scene.look(30) == ["probing"]
    assert scene.share({}) == [1, 0, 0]
    assert [scene.relays.open_to(row) for row in ROWS] == [{0}, set(), set()]
    assert scene.relays.tokens(1, 0) == PROBE_TOKENS
    assert scene.table.window_ceiling(1, 0) == 1
    scene.says(1, connections=1)
    assert scene.look() == ["up"]
    assert scene.relays.down([0]) is None
    assert scene.relays.tokens(2, 0) == MANY


def test_the_next_probe_is_another_senders(arena: Arena) -> None:
    """One sender that cannot reach it does not keep the others from trying."""
    scene = Scene(arena, main=20)
    scene.fail()
    rows = []
    for _ in range(3):
        assert scene.look(60) == ["probing"]
        rows.append(scene.share({}).index(1) + 1)
        scene.says(rows[-1], failures=50 + len(rows))
        assert scene.look() == ["tripped"]
    assert rows == ROWS


def test_a_relay_that_blames_us_trips_in_the_words_of_its_reply(arena: Arena) -> None:
    """Its connections stand, but nobody may have any: its people wait, and are not tried in vain."""
    scene = Scene(arena, main=20)
    scene.faults.note(1, "relay `main` (main.example:25): connection refused", 9)
    scene.faults.note(1, "relay `main` blames the sender: 550 5.7.1 listed", 5)
    scene.says(1, connections=3, accepted=4, blamed=20)
    assert scene.look() == ["tripped"]
    why = scene.relays.why_down([0])
    assert why is not None
    assert (why.code, why.message) == ("relay_refused", "relay `main` blames the sender: 550 5.7.1 listed")
    assert "30 s" in why.hint
    assert scene.share({1: {0}}) == [0, 0, 0]


def test_a_mode_that_one_sender_broke_is_avoided_by_all_till_one_tries_it_again(arena: Arena) -> None:
    """The trial is one sender's; when it holds everybody may use the better mode again."""
    scene = Scene(arena, main=20)
    scene.says(2, connections=1, mode=2, stepped=2)
    assert scene.look() == ["stepped"]
    scene.share({1: {0}, 2: {0}})
    assert [scene.table.mode_ceiling(row, 0) for row in ROWS] == [2, 2, 2]
    scene.says(2, stepped=0)
    scene.look(601)
    scene.share({1: {0}, 2: {0}})
    assert [scene.table.mode_ceiling(row, 0) for row in ROWS] == [0, 2, 2]
    scene.says(1, connections=1, mode=3)
    scene.look(1)
    scene.look(11)
    scene.share({1: {0}, 2: {0}})
    assert [scene.table.mode_ceiling(row, 0) for row in ROWS] == [0, 0, 0]


def test_what_was_learnt_survives_a_restart_of_the_same_relay_only(arena: Arena) -> None:
    """A trip with what is left of its time, a mode, the count after which it closes; of another host nothing."""
    scene = Scene(arena, main=20)
    scene.says(1, stepped=1, close_count=40)
    scene.fail()
    (learnt,) = scene.relays.learnt(ENGINE_S)
    assert scene.relays.learnt(ENGINE_S) == [], "kept once"
    second = Scene(arena, main=20)
    second.relays.take_up([learnt], ENGINE_S + 1)
    assert second.relays.views()[0].state == "tripped"
    assert second.relays.maps()["main"]["messages_per_connection"] == 0, "what lapses is no setting"
    second.share({})
    assert [second.table.close_count_learnt(row, 0) for row in ROWS] == [40] * 3
    assert second.table.mode_ceiling(1, 0) == 1
    assert second.look(30) == ["probing"]
    other = Scene(arena, other=20)
    other.relays.take_up([learnt], ENGINE_S + 1)
    assert other.relays.views()[0].state == "up"
    other.share({})
    assert other.table.close_count_learnt(1, 0) == 0


def test_a_habit_of_closing_is_told_all_senders_for_a_day(arena: Arena) -> None:
    """Then nobody keeps to it any more, whether a sender was restarted meanwhile or not."""
    scene = Scene(arena, main=20)
    scene.says(2, close_count=40)
    scene.look()
    scene.share({})
    assert [scene.table.close_count_learnt(row, 0) for row in ROWS] == [40] * 3
    scene.says(2, close_count=0)
    scene.look(CLOSED_S - 1)
    scene.share({})
    assert scene.table.close_count_learnt(1, 0) == 40
    scene.look(2)
    scene.share({})
    assert [scene.table.close_count_learnt(row, 0) for row in ROWS] == [0] * 3


class Moves:
    """A sender's words; behind the first that the broker reads, the connection being opened comes to stand."""

    def __init__(self, words: Any) -> None:
        self._words = words
        self._moved = False

    def __getitem__(self, which: Any) -> Any:
        read = self._words[which]
        if not isinstance(which, int):
            read = memoryview(bytes(read)).cast("q")  # as it was then
        if not self._moved:
            self._moved = True
            at = 1 * 4 * 16  # row 1 of four relays
            self._words[at + CONNECTIONS] += 1
            self._words[at + OPENING] -= 1
        return read


def test_a_connection_that_comes_to_stand_while_it_is_counted_is_counted(arena: Arena) -> None:
    """Twice for a moment, if need be; never not at all, or somebody else would be given its place."""
    scene = Scene(arena, main=20)
    scene.says(1, opening=1)
    scene.table._actor = cast("Any", Moves(scene.table._actor))
    use = scene.table.use(1, 0)
    assert use.connections + use.opening >= 1


def test_indexes_never_change_whatever_is_declared(arena: Arena) -> None:
    """A removed relay keeps its place without connections, a new one comes behind; nobody uses what it was not told."""
    scene = Scene(arena, a=4, b=4)
    change = scene.relays.apply(settings(b=6, c=4))
    assert (change.added, change.changed, change.removed) == (["c"], ["b"], ["a"])
    assert scene.relays.names == ["a", "b", "c"]
    assert list(scene.relays.maps()) == ["a", "b", "c"]
    assert [view.name for view in scene.relays.views()] == ["b", "c"]
    assert scene.share({1: {0, 1}}, index=0) == [0, 0, 0]
    assert scene.share({1: {0, 1}}, index=1) == [6, 0, 0]
    assert scene.relays.deaf() == set(ROWS)
    assert scene.relays.open_to(1) == {1}
    scene.relays.told(1, scene.relays.generation - 1)
    assert scene.relays.open_to(1) == {1}, "what it took over was older"
    scene.relays.told(1, scene.relays.generation)
    assert scene.relays.open_to(1) == {1, 2}
    assert scene.relays.deaf() == {2, 3}
    scene.relays.apply(settings(a=4))
    assert scene.relays.index("a") == 0
    with pytest.raises(EcmError, match="more relays since the start") as full:
        scene.relays.apply(settings(d=1, e=1))
    assert full.value.hint


def test_a_campaign_under_way_keeps_to_the_relays_it_was_launched_with(arena: Arena) -> None:
    """What joins its pool later is for later campaigns; without any it waits and says why."""
    scene = Scene(arena, a=4, b=4)
    origin = Origin("both", "news@example.com", ("a",))
    assert scene.relays.routes(origin) == ([(0, 1)], None)
    scene.relays.apply(settings(b=4))
    routes, barred = scene.relays.routes(origin)
    assert routes == []
    assert barred is not None
    assert barred[0] == "unknown_relay"
    scene.relays.apply(settings())
    barred = scene.relays.routes(origin)[1]
    assert barred is not None
    assert barred[:2] == ("unknown_relay", 'no relay or pool has this name: `"both"`')
    assert "ctl reload" in barred[2]


def test_a_check_whose_process_dies_is_an_answer(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that cannot be started: the campaign goes back to draft and says why."""
    relays = Scene(arena, main=20).relays
    for program in ("/bin/false", "/nonexistent/python"):
        monkeypatch.setattr(sys, "executable", program)
        answer: dict[str, Any] = asyncio.run(relays.check("main"))
        assert not answer["ok"]
        assert answer["error"]["code"] == "internal"
        assert "relay `main` could not be checked" in answer["error"]["message"]
    assert scene_states() == {1: "up", 2: "tripped", 3: "probing"}


def scene_states() -> dict[int, str]:
    """The words of `ctl stats`."""
    from broker.relays import STATES

    return {int(state): word for state, word in STATES.items() if state in RelayState}


def test_a_relay_is_blamed_for_what_it_said_lately_and_another_server_for_nothing(arena: Arena) -> None:
    """Minutes later, or at another host, the counts that senders keep on adding up do not speak against it."""
    scene = Scene(arena, main=20)
    scene.says(1, connections=1, accepted=40, blamed=4)
    scene.look()
    assert scene.relays.said(0) == (40, 4, 0)
    scene.says(1, accepted=50)
    scene.look(200)
    assert scene.relays.said(0) == (10, 0, 0)
    other = {"main": {"host": "other.example", "tls": "none", "connections": 20}}
    scene.relays.apply(Settings.model_validate({"relay": other}))
    assert scene.relays.said(0) == (0, 0, 0)
