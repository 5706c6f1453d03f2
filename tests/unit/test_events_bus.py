"""Events over a real PUB socket: topics, numbers, and that a loss is noticed."""

import asyncio
import stat
from pathlib import Path

import pytest

from broker.events import topic_of
from tests.fixtures.parts import START_ID, listening, parts


@pytest.mark.parametrize(
    ("topic", "campaign", "whole"),
    [
        ("engine", None, "engine."),
        ("campaign", 7, "campaign.7."),
        ("recipient", 7, "recipient.7."),
        ("recipient", None, "recipient."),
        ("campaign.7", 7, "campaign.7."),
        ("campaign.7.", None, "campaign.7."),
        ("relay.default", None, "relay.default."),
        ("alert", 7, "alert."),
    ],
)
def test_a_topic_ends_with_a_dot(topic: str, campaign: int | None, whole: str) -> None:
    """However it is written, a topic is whole, so that 7 never matches 70."""
    assert topic_of(topic, campaign) == whole


def test_a_word_that_is_no_topic_is_our_mistake() -> None:
    """Topics are a closed list."""
    with pytest.raises(AssertionError, match="not a topic"):
        topic_of("campaigns", 7)


def test_events_are_numbered_per_topic_and_carry_what_happened(tmp_path: Path) -> None:
    """Each topic counts from 1 without gaps; a listener to one campaign hears nothing of another."""

    async def main() -> None:
        async with parts(tmp_path) as made, listening(made, "campaign.7.") as listener:
            for n in range(3):
                made.events.publish("campaign", "campaign.running", campaign=70, data={"n": n})
                made.events.publish("campaign", "campaign.paused", campaign=7, data={"n": n})
            heard = [await listener.next() for _ in range(3)]
            assert [(m["seq"], m["topic"], m["event"], m["campaign"], m["data"]) for m in heard] == [
                (n + 1, "campaign.7.", "campaign.paused", 7, {"n": n}) for n in range(3)
            ]
            assert {(m["v"], m["start"]) for m in heard} == {(1, START_ID)}
            assert heard[0]["time"].endswith("Z")
            assert made.events.numbers()["campaign.70."] == 3

    asyncio.run(main())


def test_a_lost_last_event_is_noticed_within_a_second(tmp_path: Path) -> None:
    """Who missed everything hears the last number of the topic, marked as a repetition."""

    async def main() -> None:
        async with parts(tmp_path) as made:
            made.events.publish("job.3", "job.done")
            made.events.publish("job.3", "job.done")
            async with listening(made, "job.") as listener:
                message = await listener.until("last")
                while message["topic"] != "job.3.":
                    message = await listener.until("last")
                assert (message["seq"], message["event"], message["data"]) == (2, "last", {})
                assert made.events.numbers()["job.3."] == 2

    asyncio.run(main())


def test_only_the_service_and_its_group_can_reach_the_socket(tmp_path: Path) -> None:
    """The socket is 0660."""

    async def main() -> None:
        async with parts(tmp_path) as made:
            assert stat.S_IMODE(made.state.events.stat().st_mode) == 0o660

    asyncio.run(main())
