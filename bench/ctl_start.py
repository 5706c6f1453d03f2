"""How long `ctl stats` takes beside its yardstick: `python -c 'import zmq, msgpack'`, in one run, turn by turn.

    python -m bench.ctl_start [ROUNDS]

Starts an engine of its own in a temporary directory. The yardstick is what any Python client pays before it can ask
anything; the promise is at most 2.5 times that. The least time of each is compared, since whatever else runs on the
machine only adds to them.
"""

import subprocess
import sys
import time
from pathlib import Path

from bench.figures import aim
from bench.ours import engine
from bench.peers import place

ROUNDS = 30
LIMIT = 2.5

YARDSTICK = [sys.executable, "-c", "import zmq, msgpack"]


def main(rounds: int = ROUNDS) -> None:
    """Measure and print."""
    with place() as directory, engine(directory, "") as ours:
        stats_command = [str(Path(sys.executable).parent / "ctl"), "--state", str(ours.state.root), "stats"]
        yardstick, stats = _turn_by_turn(YARDSTICK, stats_command, rounds)
    ratio = min(stats) / min(yardstick)
    for name, times in (("import zmq, msgpack", yardstick), ("ctl stats", stats)):
        print(f"{name:<20} least {min(times) * 1000:6.1f} ms   median {sorted(times)[len(times) // 2] * 1000:6.1f} ms")
    aim("start of `ctl stats`, times that of its imports", LIMIT, ratio, at_most=True)


def _turn_by_turn(first: list[str], second: list[str], rounds: int) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for found, command in zip(times, (first, second), strict=True):
            began = time.perf_counter()
            _run(command)
            found.append(time.perf_counter() - began)
    return times[0][1:], times[1][1:]  # the first round only warms the caches


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main(*(int(text) for text in sys.argv[1:2]))
