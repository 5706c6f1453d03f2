"""Suppressing a file of addresses beside a working broker: `python bench/suppression.py [--rows N] [--json]`.

Imports N addresses through the broker's own parts (store thread, log in shared memory) and measures, while it runs,
how late the loop is and how long a call of one row waits for the store's thread. The figures hold for the machine
and the directory (`--dir`: every batch is synced there).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from broker.store import jobs as store_jobs
from tests.fixtures.parts import Parts, parts

TICK_S = 0.005


async def lateness(late_ms: list[float]) -> None:
    """Note how late each tick of the loop is."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(TICK_S)
        late_ms.append((time.perf_counter() - began - TICK_S) * 1e3)


async def calls(made: Parts, waits_ms: list[float]) -> None:
    """Ask the store for one thing, again and again."""
    while True:
        began = time.perf_counter()
        await made.store_call(store_jobs.unfinished)
        waits_ms.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(2 * TICK_S)


async def measured(root: Path, rows: int) -> dict[str, Any]:
    """One import of new addresses."""
    path = root / "leavers.txt"
    with path.open("w") as file:
        file.writelines(f"user{n}@example{n % 1000}.com\n" for n in range(rows))
    late_ms: list[float] = []
    waits_ms: list[float] = []
    async with parts(root / "state") as made:
        await made.suppression.rebuild(None)
        beside = [asyncio.ensure_future(lateness(late_ms)), asyncio.ensure_future(calls(made, waits_ms))]
        result = await made.jobs.result(await made.suppression.import_(str(path)))
        for task in beside:
            task.cancel()
    return {
        "rows": rows,
        "seconds": result["seconds"],
        "rows_per_second": result["rows_per_second"],
        "loop_late_ms": spread(late_ms),
        "store_wait_ms": spread(waits_ms),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    ordered = sorted(values)
    at = {"p50": 0.5, "p99": 0.99}
    return {name: round(ordered[int(len(ordered) * share)], 1) for name, share in at.items()} | {
        "max": round(ordered[-1], 1)
    }


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="suppressing a file of addresses beside a working broker")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--dir", type=Path, help="where the store is made; default: the system's temporary directory")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        figures = uvloop.run(measured(Path(directory), options.rows))
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:16} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
