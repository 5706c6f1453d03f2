"""`ctl events`: what happens, one event a line, until interrupted."""

from typing import Any

import click
import zmq

from broker.contract import codec
from broker.contract.errors import EcmError
from broker.contract.sockets import ipc
from ctl import output
from ctl.client import Client, engine_pid, no_engine
from ctl.options import common, options

__all__ = ["command"]

TOPICS = ("engine", "actor", "campaign", "recipient", "relay", "job", "governor", "alert")
LAST = "last"  # the event that only repeats the last number of its topic
LOOK_MS = 500  # while nothing happens, this often it is made sure that the engine still lives
KNOCK = "actor."  # a topic that always has a number, which is repeated each second
KNOCK_MS = 3000
KEYS = ("seq", "time", "topic", "event", "campaign", "data")


@click.command("events", help="What happens: `--follow` prints events as they come; without it, the last numbers.")
@common
@click.option("--follow", is_flag=True, help="print events as they come, until interrupted")
@click.argument("topics", metavar="[TOPIC...]", nargs=-1)
def command(follow: bool, topics: tuple[str, ...]) -> None:
    """Events of the engine. A topic is a word, or more: `campaign`, `campaign.7`."""
    chosen = options()
    wanted = [_topic(text) for text in topics]
    with Client(chosen.state_dir) as client:
        if follow:
            _follow(client, wanted, as_json=chosen.json)
            return
        found = client.request("events.snapshot")
    numbers = {t: n for t, n in found["topics"].items() if not wanted or t.startswith(tuple(wanted))}
    if chosen.json:
        output.document({"v": 1, "start": found["start"], "topics": numbers})
        return
    output.table(["topic", "last"], sorted(numbers.items()), right=["last"])


def _topic(text: str) -> str:
    topic = text.strip().rstrip(".")
    if topic.partition(".")[0] not in TOPICS:
        raise EcmError("invalid_value", f"no such topic: `{text}`", hint=f"topics: {', '.join(TOPICS)}")
    return topic + "."


def _follow(client: Client, topics: list[str], *, as_json: bool) -> None:
    """Subscribe, make sure of it, ask for the numbers: from then on an event is printed or known to be missed."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    wanted = tuple(topics or [""])
    try:
        for topic in (*wanted, KNOCK):
            socket.subscribe(topic)
        socket.connect(ipc(client.state.events))
        socket.poll(KNOCK_MS)  # what arrives proves that the engine knows of the subscription
        last: dict[str, int] = dict(client.request("events.snapshot")["topics"])
        output.say(f"following {', '.join(topics) or 'everything'}; Ctrl-C ends it")
        while True:
            if socket.poll(LOOK_MS):
                event = codec.unpack(socket.recv_multipart()[-1])
                if event["topic"].startswith(wanted):
                    _show(event, last, as_json=as_json)
            elif engine_pid(client.state) is None:
                raise no_engine(client.state)
    finally:
        socket.close(0)


def _show(event: dict[str, Any], last: dict[str, int], *, as_json: bool) -> None:
    topic, number = event["topic"], event["seq"]
    repeated = event["event"] == LAST
    missed = number - last.get(topic, 0) - (0 if repeated else 1)
    if missed > 0:
        output.say(f"{missed} events of {topic} were missed")
    last[topic] = max(number, last.get(topic, 0))
    if repeated:
        return
    if as_json:
        output.document({key: event[key] for key in KEYS})
        return
    data = "  ".join(f"{key}={_short(value)}" for key, value in event["data"].items() if value is not None)
    output.line(f"{event['time']}  {topic}{number}  {event['event']}  {data}".rstrip())


def _short(value: Any) -> str:
    return output.number(value) if not isinstance(value, dict | list) else f"{len(value)} items"
