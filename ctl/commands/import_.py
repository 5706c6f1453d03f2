"""`ctl import`: recipients into a list that is kept."""

import os
from typing import Any

import click

from broker.contract.errors import EcmError
from ctl import live, output
from ctl.client import Client, idempotency_key
from ctl.follow import end_of_job
from ctl.options import common, options

__all__ = ["absolute", "command"]

COUNTS = ("rows", "rejected", "duplicates", "added", "updated", "unchanged", "unsubscribed_kept")


@click.command("import", help="Import a file of recipients into a list; who is there already is updated.")
@common
@click.argument("list_name", metavar="LIST")
@click.argument("file", metavar="FILE")
@click.option("--email-column", metavar="NAME", help="the address column, if its name does not say so")
@click.option("--dry-run", is_flag=True, help="read and check everything, change nothing")
@click.option(
    "--max-rejected", type=click.FloatRange(0, 1), metavar="SHARE", help="import nothing if more rows are rejected"
)
def command(list_name: str, file: str, email_column: str | None, dry_run: bool, max_rejected: float | None) -> None:
    """Import, and wait for the end of it."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        args = {"list": list_name, "path": absolute(file), "email_column": email_column}
        if max_rejected is not None:
            _check(_run(client, args | {"dry_run": True}), max_rejected, file)
        result = _run(client, args | {"dry_run": dry_run})
    if chosen.json:
        output.document(result)
        return
    _print(result)


def _run(client: Client, args: dict[str, Any]) -> dict[str, Any]:
    """One import, from request to result."""
    job = client.request("audience.import", args, key=idempotency_key())["job"]
    try:
        with live.view() as view:
            return end_of_job(client, job, view)
    except KeyboardInterrupt:
        output.say(f"the engine goes on with the import (job {job})")
        raise


def _check(result: dict[str, Any], share: float, file: str) -> None:
    """Raise EcmError too_many_rejected if a dry run rejected more than this share of the rows."""
    rows, rejected = result["rows"], result["rejected"]
    if rejected > share * rows:
        raise EcmError(
            "too_many_rejected",
            f"{rejected:,} of {rows:,} rows would be rejected, more than {share:.0%}; nothing was imported",
            file=file,
            count=rejected,
            hint=f"each with its reason: {result['rejects_file']}",
        )


def absolute(file: str) -> str:
    """The path as the engine must be told it. Raises EcmError if there is no such file."""
    path = os.path.abspath(file)  # noqa: PTH100 - the engine is to see the name that was given, links and all
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        raise EcmError("file_missing", "no such file", file=file) from None
    except (OSError, ValueError):
        return path  # what we may not see, the engine perhaps may
    return path


def _print(result: dict[str, Any]) -> None:
    if result["dry_run"]:
        output.say(f"dry run: list {result['list']} was not changed")
    output.pairs([("list", result["list"]), *((name, result[name]) for name in COUNTS)])
    if result["rejects_file"]:
        output.pairs([("rejects_file", result["rejects_file"])])
    output.pairs([("seconds", result["seconds"]), ("rows_per_second", result["rows_per_second"])])
