"""Microseconds per composed message, for templates of 1, 4 and 40 kB. Run: `python bench/compose.py [--seconds N]`.

Each message is personal: subject, some twenty fields in text and HTML, an unsubscribe link of its own. The columns are
the two ways of composing (`actors/message/split.py`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from actors.message.compose import Composer

LINE = '<tr><td style="padding: 8px 0">We bake every morning, and today\'s loaves are still warm.</td></tr>\n'
GERMAN = '<tr><td style="padding: 8px 0">Wir backen täglich für Sie, und heute ist alles noch warm.</td></tr>\n'


def spec(size: int, line: str) -> dict[str, object]:
    """A campaign whose HTML template has about `size` bytes, with a text part of a quarter of that."""
    tags = "<p>Dear {{ first_name }} {{ last_name }}, your number is {{ number }}.</p>\n"
    foot = '<p>Sent to {{ email }}. <a href="{{ unsubscribe_url }}">Unsubscribe</a></p>\n'
    block = tags + line * max(1, (size // 6 - len(tags)) // len(line))
    html = (
        "<html><body>\n"
        + block * 6
        + "{% if city %}<p>See you in {{ city }}!</p>{% endif %}\n"
        + foot
        + "</body></html>\n"
    )
    text = "Dear {{ first_name }} {{ last_name }},\n\n" + "Plain words, plainly said, line by line.\n" * (size // 160)
    return {
        "name": "bench",
        "subject": "{{ first_name }}, your bread for {{ city }}",
        "from_name": "The Bakery",
        "from_address": "news@example.com",
        "html": html,
        "text": text + "\n{{ unsubscribe_url }}\n",
        "unsubscribe_mailto": "unsubscribe@example.com",
        "unsubscribe_url": "https://example.com/u?e={{ email | urlencode }}&c=7",
    }


def rows(name: str) -> list[dict[str, str]]:
    """Recipients, ten columns each."""
    return [
        {
            "email": f"reader.{i}@example.org",
            "first_name": name,
            "last_name": f"Smith{i}",
            "number": str(10_000 + i),
            "city": "" if i % 3 else "London",
            **{f"column_{c}": f"value {c}" for c in range(5)},
        }
        for i in range(100)
    ]


def us_per_message(compose: Callable[..., object], recipients: list[dict[str, str]], seconds: float) -> float:
    """Processor time of the best hundred messages in a row: what others do on this core does not count."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.process_time_ns()
        for fields in recipients:
            compose(fields, b"0123456789abcdef", 1_795_516_093)
        best = min(best, (time.process_time_ns() - begun) / len(recipients) / 1e3)
    return best


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each figure")
    seconds = parser.parse_args().seconds
    print(f"{'template':>10} {'text':>8} {'bytes':>8} {'split us':>9} {'whole us':>9}")
    for size in (1_000, 4_000, 40_000):
        for label, line, name in (("ascii", LINE, "Anna"), ("utf-8", GERMAN, "Anna"), ("names too", GERMAN, "Jürgen")):
            composer = Composer(spec(size, line), "0" * 32, 7, "email")
            recipients = rows(name)
            length = len(composer.compose(recipients[0], b"0" * 16, 0).data)
            split = us_per_message(composer.compose, recipients, seconds)
            whole = us_per_message(composer.compose_whole, recipients, seconds)
            print(f"{size:>10} {label:>9} {length:>8} {split:>9.1f} {whole:>9.1f}")


if __name__ == "__main__":
    main()
