"""How fast audiences are loaded, and in how much memory: `python bench/load.py [--rows N] [--json]`.

Three ways of N generated rows of five columns: a CSV file straight to shards, the same file into a list, the list to
shards. Each runs the loader's job function in a process of its own, so each has a peak memory of its own (VmHWM).
The figures hold for the machine and the directory (`--dir`: shards and lists are fsynced there).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from actors.loader.ingest import import_list
from actors.loader.snapshot import snapshot
from broker.contract.campaign import parse_campaign
from broker.contract.paths import StateDir

CAMPAIGN = """
name = "bench"
subject = "Hello {{ first_name }}"
from = "News <news@example.com>"
text = "message.txt"
recipients = "recipients.csv"
[unsubscribe]
url = "https://example.com/u?e={{ email | urlencode }}"
"""
TEXT = "Hello {{ first_name }} of {{ city }}\n{{ unsubscribe_url }}\n"
WAYS = ("file to shards", "file to list", "list to shards")


def generate(path: Path, rows: int, quoted: bool) -> None:
    """Write the file: distinct addresses of some hundred domains, one row in a thousand a repeated one."""
    mark = '"' if quoted else ""
    join = f"{mark},{mark}"
    with path.open("w", encoding="utf-8") as file:
        file.write("email,first_name,last_name,city,customer\n")
        for n in range(rows):
            who = n - 999 if n % 1_000 == 999 else n
            cells = (f"user.{who}@mail{who % 97}.example.com", f"First{n % 5_000}", f"Last{n % 9_000}")
            file.write(f"{mark}{join.join(cells)}{join}City {n % 370}{join}{n}{mark}\n")


def run(way: str, directory: Path, answer: Any) -> None:
    """One way, in a process of its own: put its figures into the queue."""
    state = StateDir(directory / "state")
    state.root.mkdir(exist_ok=True)
    path = str(directory / "recipients.csv")
    progress = 0

    def count(_data: dict[str, Any]) -> None:
        nonlocal progress
        progress += 1

    if way == "file to list":
        args = {"list": "bench", "path": path, "email_column": None, "dry_run": False}
        result = import_list(args, count, lambda: False, state=state, now_s=1.0)
    else:
        spec = parse_campaign(CAMPAIGN, "bench.toml", {"message.txt": TEXT}).to_map()
        spec |= {"recipients": path} if way == "file to shards" else {"recipients": None, "audience": "bench"}
        args = {"campaign": 1, "spec": spec, "relays": [["default", 1]], "sender_count": 2, "instance": "00" * 16}
        result = snapshot(args, count, lambda: False, state=state, now_s=1)
    status = Path("/proc/self/status").read_text().splitlines()
    high_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    answer.put(
        {
            "way": way,
            "rows": result["rows"],
            "duplicates": result["duplicates"],
            "seconds": result["seconds"],
            "rows_per_second": round(result["rows_per_second"]),
            "cpu_seconds": round(time.process_time(), 3),
            "peak_rss_mb": round(high_kib / 1024, 1),
        }
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, help="where files and state go (default: a temporary directory)")
    parser.add_argument("--way", action="append", choices=WAYS, help="only this way (may be repeated)")
    parser.add_argument("--quoted", action="store_true", help="every cell in quotes")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="bench-load-", dir=options.dir))
    spawn = multiprocessing.get_context("spawn")
    figures = []
    try:
        generate(directory / "recipients.csv", options.rows, options.quoted)
        size_mb = round((directory / "recipients.csv").stat().st_size / 1e6, 1)
        for way in WAYS:
            if options.way and way not in options.way:
                continue
            answer = spawn.SimpleQueue()
            process = spawn.Process(target=run, args=(way, directory, answer))
            process.start()
            process.join()
            if process.exitcode != 0:
                return 1
            figures.append(answer.get())
            if not options.json:
                print(
                    "{way:15} {rows:>10} rows {seconds:8.2f} s {rows_per_second:>8} rows/s "
                    "{cpu_seconds:8.2f} s CPU {peak_rss_mb:7.1f} MB".format(**figures[-1]),
                    flush=True,
                )
        if options.json:
            print(json.dumps({"file_mb": size_mb, "figures": figures}))
    finally:
        shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
