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
def command(list_name: str, file: str, email_column: str | None, dry_run: bool) -> None:
    """Import, and wait for the end of it."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        args = {"list": list_name, "path": absolute(file), "email_column": email_column, "dry_run": dry_run}
        job = client.request("audience.import", args, key=idempotency_key())["job"]
        try:
            with live.view() as view:
                result = end_of_job(client, job, view)
        except KeyboardInterrupt:
            output.say(f"the engine goes on with the import (job {job})")
            raise
    if chosen.json:
        output.document(result)
        return
    _print(result)


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
