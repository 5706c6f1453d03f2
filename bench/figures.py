"""Figures side by side: rounds that alternate, the ratio of each round, and what was aimed at.

A ratio is taken within a round, so that a machine that slows down slows both sides; its median is the figure.
`aim` prints lines of one form, which `bench.all` gathers: "NAME: aim 1.5, measured 1.62: reached".
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Sequence

__all__ = ["AIM", "Rounds", "aim", "options_of"]

AIM = re.compile(r".+: aim .+, measured .+: (reached|missed)")


def options_of(doc: str | None, messages: int) -> argparse.ArgumentParser:
    """The options that benchmarks of campaigns share.  `doc`: their page; `messages`: how many unless told."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=messages)
    parser.add_argument("--bytes", type=int, default=4096, help="size of a whole message")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=20)
    return parser


class Rounds:
    """What each round measured, by name. `heading`: what the numbers are."""

    def __init__(self, heading: str) -> None:
        self._heading = heading
        self._values: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """One more round of one side."""
        self._values.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """The figure of one side."""
        return statistics.median(self._values[name])

    def show(self) -> None:
        """Print heading, medians and every round."""
        print(self._heading)
        for name, values in self._values.items():
            print(f"  {name:<34}{_number(statistics.median(values)):>10}   ({', '.join(map(_number, values))})")

    def ratio(self, mine: str, theirs: str) -> float:
        """Print mine / theirs of each round; returns the median."""
        pairs = zip(self._values[mine], self._values[theirs], strict=True)
        ratios = [one / other for one, other in pairs]
        found = statistics.median(ratios)
        print(f"  {f'{mine} / {theirs}':<34}{found:>10.2f}   ({', '.join(f'{r:.2f}' for r in ratios)})")
        return found


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def aim(name: str, wanted: float, measured: float | Sequence[float], *, at_most: bool = False) -> None:
    """Print what was aimed at beside what came of it. Of several measurements the worst counts."""
    values = [measured] if isinstance(measured, (int, float)) else list(measured)
    worst = max(values) if at_most else min(values)
    reached = worst <= wanted if at_most else worst >= wanted
    sign, digits = "at most" if at_most else "at least", 3 if worst < 10 else 0
    verdict = "reached" if reached else "missed"
    print(f"{name}: aim {sign} {wanted:g}, measured {worst:.{digits}f}: {verdict}", flush=True)
