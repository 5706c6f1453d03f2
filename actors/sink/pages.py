"""Fills the tables of docs/rehearsal.md from the code: magic recipients and counts.

    python -m actors.sink.pages docs/rehearsal.md            rewrites them
    python -m actors.sink.pages docs/rehearsal.md --check    exit 1 if they are stale

How a table stands on its page: `actors/page_tables.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from actors import page_tables
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
    return page_tables.fill(page, TABLES)


def main(argv: list[str] | None = None) -> int:
    """Rewrite or check a page; returns the exit status."""
    return page_tables.main(argv, TABLES, "actors.sink.pages")


if __name__ == "__main__":
    sys.exit(main())
