"""Writes the parts of docs/protocol.md that the code knows: operations, arguments, error codes, topics.

    python -m broker.contract.protocol_page --check | --write

The prose around them is written by hand. A part stands between `<!-- begin NAME -->` and `<!-- end NAME -->` and is
replaced as a whole; a test runs `--check`, so the page cannot say other than the code.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from broker.contract.errors import CODES
from broker.contract.messages import OPERATIONS, TOPICS, Operation

__all__ = ["PAGE", "main", "written"]

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"

_TYPES = {"string": "text", "integer": "integer", "boolean": "boolean", "object": "map"}


def written(page: str) -> str:
    """The page with every generated part as the code has it now. Raises ValueError for a part nobody generates."""
    parts = {"operations": _operations(), "codes": _codes(), "topics": _topics()}

    def part(match: re.Match[str]) -> str:
        name = match[1]
        if name not in parts:
            raise ValueError(f"no such part: {name}")
        return f"<!-- begin {name} -->\n{parts.pop(name)}<!-- end {name} -->"

    page = re.sub(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", part, page, flags=re.DOTALL)
    if parts:
        raise ValueError(f"parts that are missing: {', '.join(parts)}")
    return page


def _operations() -> str:
    overview = ["| operation | | key |", "|---|---|---|"]
    for name, operation in OPERATIONS.items():
        anchor = name.replace(".", "")
        overview.append(f"| [`{name}`](#{anchor}) | {operation.summary} | {'yes' if operation.changes else ''} |")
    sections = [_section(name, operation) for name, operation in OPERATIONS.items()]
    return "\n".join([*overview, "", *sections])


def _section(name: str, operation: Operation) -> str:
    lines = [f"### {name}", "", f"{operation.summary}.", ""]
    schema = operation.args.model_json_schema()
    if schema.get("properties"):
        lines += ["| argument | type | default | |", "|---|---|---|---|"]
        for argument, declared in schema["properties"].items():
            field = operation.args.model_fields[argument]
            default = "required" if field.is_required() else _default(field)
            lines.append(f"| `{argument}` | {_type(declared)} | {default} | {field.description} |")
        lines.append("")
    lines += [f"Result: {operation.reply}", ""]
    return "\n".join(lines)


def _type(declared: Mapping[str, Any]) -> str:
    if "anyOf" in declared:
        return " or ".join(_type(each) for each in declared["anyOf"] if each.get("type") != "null")
    if declared["type"] == "array":
        return f"array of {_type(declared['items'])}"
    return _TYPES[declared["type"]]


def _default(field: FieldInfo) -> str:
    return f"`{json.dumps(field.get_default(call_default_factory=True))}`"


def _codes() -> str:
    lines = ["| code | exit | |", "|---|---|---|"]
    lines += [f"| `{code}` | {status} | {meaning} |" for code, (status, meaning) in CODES.items()]
    return "\n".join([*lines, ""])


def _topics() -> str:
    lines = ["| topic | |", "|---|---|"]
    lines += [f"| `{word}.` | {meaning} |" for word, meaning in TOPICS.items()]
    return "\n".join([*lines, ""])


def main() -> int:
    """Check or write the page. Returns the exit status: 1 if `--check` found it stale."""
    parser = argparse.ArgumentParser(prog="python -m broker.contract.protocol_page", description="docs/protocol.md")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--check", action="store_true", help="exit 1 if the page is not as the code has it")
    chosen.add_argument("--write", action="store_true", help="bring the page up to date")
    parser.add_argument("page", nargs="?", type=Path, default=PAGE)
    options = parser.parse_args()
    there = options.page.read_text()
    wanted = written(there)
    if options.write:
        options.page.write_text(wanted)
    elif there != wanted:
        sys.stderr.write(f"{options.page} is stale; run: python -m broker.contract.protocol_page --write\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
