"""Every benchmark in a short form, one after the other, and in the end what was aimed at beside what came of it.

    python -m bench.all [--only NAME ...] [--long]

Under fifteen minutes in all; `--long` takes the size each benchmark has by default (an hour). Each runs as a process of
its own within a limit of time; what a machine cannot measure says so in one line. Exit status 1 if a benchmark failed
to run; a figure that is missed is printed and fails nothing, since absolute speed is the machine's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import NamedTuple

from bench.figures import AIM
from bench.peers import end_on_term


class Bench(NamedTuple):
    """A benchmark: module, what makes it short, what it always takes, seconds it may run (short)."""

    module: str
    short: str = ""
    always: str = ""
    limit_s: int = 240


BENCHES = (
    Bench("campaign", "--messages 100000 --rounds 3"),
    Bench("campaign", "--messages 20000 --rounds 3", "--bytes 40000"),
    Bench("postfix", "--messages 10000 --rounds 3"),
    Bench("tls", "--messages 20000 --rounds 3"),
    Bench("adaptive", "--seconds 30"),
    Bench("latency", "--seconds 5 --many-messages 20000"),
    Bench("server_class", "--messages 10000"),
    Bench("nodemailer", "--messages 20000 --rounds 2"),
    Bench("memory", "--messages 300000"),
    Bench("stages"),
    Bench("compose", "--seconds 0.2"),
    Bench("sender"),
    Bench("smtp", "--messages 20000"),
    Bench("load", "--rows 300000"),
    Bench("suppression", "--rows 500000"),
    Bench("ctl_start"),
)
LONG_LIMIT_S = 3600
CLEAN_UP_S = 120


def run(bench: Bench, long: bool) -> tuple[list[str], str]:
    """Run one, passing its output on. Returns its lines of aims, and why it failed or ""."""
    arguments = bench.always.split() + ([] if long else bench.short.split())
    command = [sys.executable, "-m", f"bench.{bench.module}", *arguments]
    print(f"\n$ python {' '.join(command[1:])}", flush=True)
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    limit_s = LONG_LIMIT_S if long else bench.limit_s
    try:
        output, _ = process.communicate(timeout=limit_s)
        failed = f"exit status {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate(timeout=CLEAN_UP_S)
        failed = f"not done in {limit_s} s"
    except BaseException:  # we are told to end: so is the benchmark, which cleans up
        process.terminate()
        process.wait(CLEAN_UP_S)
        raise
    print(f"{output.rstrip()}\n({time.monotonic() - began:.0f} s{f', {failed}' if failed else ''})", flush=True)
    return [line for line in output.splitlines() if AIM.fullmatch(line)], failed


def main() -> int:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted({bench.module for bench in BENCHES}))
    parser.add_argument("--long", action="store_true", help="every benchmark in full")
    options = parser.parse_args()
    end_on_term()
    aims, failures = [], []
    for bench in BENCHES:
        if options.only and bench.module not in options.only:
            continue
        found, failed = run(bench, options.long)
        aims += found
        if failed:
            failures.append(f"{bench.module} {bench.always}".strip() + f": {failed}")
    print("\naims")
    for line in [*aims, *failures]:
        print(f"  {line}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
