"""Faults of relays, each a small file (smtp_scenarios/NAME.toml): recipient, connection, and the messages behind it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.smtp.events import Event, Mode, Stage
from actors.smtp.outcome import CONCLUDES
from tests.fixtures.smtp_scenarios import SCENARIOS, Scenario, verdicts


@pytest.mark.parametrize("cut", [0, 1, 7], ids=["whole", "bytewise", "by-seven"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_fault_comes_out_as_its_file_says(scenario: Scenario, cut: int) -> None:
    """Each message is concluded as told, and the relay took exactly what is told."""
    run, relay = scenario.run([cut])
    assert verdicts(run) == scenario.verdicts
    assert [number for number, *_ in relay.accepted] == scenario.accepted


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SCENARIOS), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_a_fault_comes_out_the_same_however_the_replies_are_cut(scenario: Scenario, cuts: list[int]) -> None:
    """Replies split at random places."""
    run, _ = scenario.run(cuts)
    assert verdicts(run) == scenario.verdicts


def test_every_way_to_conclude_a_message_has_a_scenario() -> None:
    """All of (mode, stage, event) that `outcome` names, and no other."""
    told = set()
    for scenario in SCENARIOS:
        for verdict in scenario.verdicts.values():
            stage, event = verdict.partition(":")[0].split()
            told.add((scenario.mode, Stage[stage], Event(event)))
    named = {(mode, stage, event) for mode, stages in CONCLUDES.items() for stage in stages for event in stages[stage]}
    assert told == named


def test_conclusions_come_in_the_order_of_submission() -> None:
    """Whatever happens: the sender takes them off a queue."""
    for scenario in SCENARIOS:
        run, _ = scenario.run([0])
        numbers = [concluded.number for concluded in run.concluded]
        assert numbers == sorted(numbers), scenario


def test_every_mode_meets_faults() -> None:
    """A directory that was not read would test nothing."""
    assert {scenario.mode for scenario in SCENARIOS} == set(Mode)
