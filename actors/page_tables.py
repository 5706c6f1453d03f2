"""Fills the tables of a page from the code that decides, or says that they are stale.

A table stands between `<!-- NAME: generated -->` and `<!-- NAME: end -->`; everything else on the page is a person's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["fill", "main"]


def fill(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The page with its tables as the code would have them. Raises ValueError if one has no place on it."""
    for name, table in tables.items():
        begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
        head, found, rest = page.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the page has no place for `{name}`: {begin} ... {end}")
        page = f"{head}{begin}\n{table()}\n{end}{tail}"
    return page


def main(argv: list[str] | None, tables: Mapping[str, Callable[[], str]], module: str) -> int:
    """Rewrite or check a page for the program `module`; returns the exit status."""
    options = argparse.ArgumentParser(description="Fill the tables of a page from the code")
    options.add_argument("page", type=Path)
    options.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is stale")
    arguments = options.parse_args(argv)
    page = arguments.page.read_text(encoding="utf-8")
    filled = fill(page, tables)
    if filled == page:
        return 0
    if arguments.check:
        sys.stderr.write(f"{arguments.page}: a table is stale; run: python -m {module} {arguments.page}\n")
        return 1
    arguments.page.write_text(filled, encoding="utf-8")
    return 0
