"""What each class of server is promised to send, and what this machine sends when it is one of that class.

    python -m bench.server_class [--messages 20000] [--bytes 4096] [--connections 20] [--server sink|postfix]

Every process of the engine may run on the cores of the class only. Encryption (STARTTLS, certificate verified),
personal HTML and text, and durable accounting at its default interval are on. The server shares the machine: a real
relay would leave these cores to the engine. Classes with more cores than this machine has are named, not measured.
Memory is what all processes of the engine take at the end, beside what the class has.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.figures import aim
from bench.ours import Campaign, Engine, engine, relay
from bench.peers import need, place
from bench.tls import Server, add_server_option, served

MB = 1e6


class Grade(NamedTuple):
    """A class of servers: its name, cores, memory, and messages a second it is promised."""

    name: str
    cores: int
    memory_gb: int
    promised: int


GRADES = (
    Grade("small", 2, 4, 200),
    Grade("medium", 4, 8, 400),
    Grade("large", 8, 16, 800),
    Grade("huge", 16, 32, 1600),
)


def memory_mb(ours: Engine) -> float:
    """Resident memory of all processes of an engine; pages they share are counted once for each."""
    return sum(process.memory_info().rss for process in ours.processes()) / MB


def measure(grade: Grade, directory: Path, server: Server, options: argparse.Namespace) -> None:
    """Send one campaign on the cores of a class."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: grade.cores]))
    settings = relay("default", server.port, options.connections, tls="required", more=f'ca_file = "{server.ca_file}"')
    with engine(directory / grade.name, settings, prefix=("taskset", "-c", cores)) as ours:
        ours.send(Campaign.make(directory, min(options.messages, 2_000), options.bytes), "warm-up")
        sent = ours.send(Campaign.make(directory, options.messages, options.bytes), "measured")
        p99, memory = ours.stats()["latency_ms"]["p99"], memory_mb(ours)
    print(f"{grade.name} server: promised {grade.promised}/s, measured {sent.rate:,.0f}/s")
    print(
        f"  {grade.cores} cores ({cores}), engine's CPU {sent.cpu_us:.0f} us a message, "
        f"reply within {p99:g} ms in 99 of 100, {memory:,.0f} MB of {grade.memory_gb} GB"
    )
    aim(f"{grade.name} server, STARTTLS and durable accounting, messages/s", grade.promised, sent.rate)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=4096, help="size of a whole message")
    parser.add_argument("--connections", type=int, default=20)
    add_server_option(parser)
    options = parser.parse_args()
    need("taskset")
    here, memory_gb = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / (1 << 30)
    with place() as directory, served(options.server, directory) as server:
        for grade in GRADES:
            if grade.cores <= here:
                measure(grade, directory, server, options)
            else:
                print(
                    f"{grade.name} server: promised {grade.promised}/s, not measured: it has {grade.cores} cores and "
                    f"{grade.memory_gb} GB, this machine {here} cores and {memory_gb:.0f} GB"
                )


if __name__ == "__main__":
    main()
