"""Fills the tables of docs/rehearsal.md from the code: magic recipients and counts.

    python -m actors.sink.pages docs/rehearsal.md            rewrites them
    python -m actors.sink.pages docs/rehearsal.md --check    exit 1 if they are stale

A table stands between `<!-- NAME: generated -->` and `<!-- NAME: end -->`; everything else on the page is a person's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from actors.sink.magic import MAGIC, SCRIPTED
from actors.sink.record import MEANINGS

__all__ = ["fill", "main"]


def recipients() -> str:
    """The magic recipients, and what each is counted as."""
    rows = [f"| `{magic.name}@` | {magic.text} | `{magic.fate.counter}` |" for magic in MAGIC]
    names, text = SCRIPTED
    rows.append(f"| {names} | {text} | `deferred`, `bounced` |")
    return "\n".join(["| recipient | what happens | counted as |", "|---|---|---|", *rows])


def counts() -> str:
    """What the server counts."""
    return "\n".join(["| count | |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in MEANINGS.items())])


TABLES: dict[str, Callable[[], str]] = {"recipients": recipients, "counts": counts}


def fill(page: str) -> str:
    """The page with its tables as the code would have them. Raises ValueError if one has no place on it."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
        head, found, rest = page.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the page has no place for `{name}`: {begin} ... {end}")
        page = f"{head}{begin}\n{table()}\n{end}{tail}"
    return page


def main(argv: list[str] | None = None) -> int:
    """Rewrite or check a page; returns the exit status."""
    options = argparse.ArgumentParser(description="Fill the tables of docs/rehearsal.md from the code")
    options.add_argument("page", type=Path)
    options.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is stale")
    arguments = options.parse_args(argv)
    there = arguments.page.read_text(encoding="utf-8")
    wanted = fill(there)
    if arguments.check and there != wanted:
        sys.stderr.write(f"{arguments.page} is stale; run: python -m actors.sink.pages {arguments.page}\n")
        return 1
    if not arguments.check:
        arguments.page.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
