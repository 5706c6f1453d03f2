"""The small files in which the kernel tells of itself (/proc, /sys, cgroups): read as text or as a number.

One that is missing, unreadable or says "max" is no error: what is unknown is None.
"""

from pathlib import Path

__all__ = ["number_in", "text_of"]


def number_in(path: Path) -> int | None:
    """The number in a file; None for "max", for what is no number and for no file."""
    text = text_of(path).strip()
    return int(text) if text.removeprefix("-").isdigit() else None


def text_of(path: Path) -> str:
    """All of a file, empty if it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
