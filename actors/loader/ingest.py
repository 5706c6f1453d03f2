"""Imports a file into a list that is kept.

The whole file is read, judged and set aside before the list is touched, so a file that cannot be read to its end
changes nothing. The rows lie in a nameless scratch file by the first bits of their key (`aside`); part by part they
are sorted and merged, so each page of the database is written once however large the list is.

Invariants
- rows = rejected + duplicates + added + updated + unchanged + unsubscribed_kept.
- The first row of an address wins, whatever the order of the parts.
- Batches are idempotent: each is one transaction, and a row merged again is unchanged. An import that was interrupted
  is begun again from the beginning. One transaction for all would make every other writer wait for its end, and a
  list of millions would pass through the log of the database twice.
- A dry run reads, judges and compares everything and changes nothing but the side file of rejected rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

from actors.loader.aside import Aside
from actors.loader.faults import explain_errno
from actors.loader.progress import Cancelled, Meter, Progress
from actors.loader.recipients import RecipientsFile
from actors.loader.rejects import RejectFile
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from broker.store.audience import AudienceStore, Merged
from shm import address as shm_address

__all__ = ["import_list", "unsubscribe"]

Item = TypeVar("Item")


def import_list(
    args: dict[str, Any], progress: Progress, cancelled: Cancelled, *, state: StateDir, now_s: float, job: int = 0
) -> dict[str, Any]:
    """Put the rows of a file into a list.

    args     list, path, email_column (or None), dry_run
    now_s    engine time, seconds
    job      names the side file of rejected rows
    return   list, dry_run, rows, rejected, duplicates, added, updated, unchanged, unsubscribed_kept, rejects_file,
             seconds, rows_per_second
    Raises EcmError for everything that is wrong with the file or the disk.
    """
    name, dry_run = str(args["list"]), bool(args.get("dry_run"))
    meter = Meter(progress, cancelled)
    with explain_errno(state.root):
        rejects = RejectFile(state.lists_jobs / f"rejects-{job}.csv")
        with closing(rejects), closing(Aside(state.root)) as aside:
            with closing(RecipientsFile(args["path"], args.get("email_column"), rejects.add, keeping=True)) as audience:
                meter.phase("reading", audience.size)
                for batch in audience.batches():
                    aside.add(batch)
                    meter.at(batch.end, audience.rows)
            with closing(AudienceStore.open(state.audience_db)) as store:
                merged, duplicates = _merge(store, name, aside, meter, now_s, dry_run, audience.rows, audience.size)
    seconds = meter.seconds
    return {
        "list": name,
        "dry_run": dry_run,
        "rows": audience.rows,
        "rejected": audience.rejected,
        "duplicates": duplicates,
        "added": merged.added,
        "updated": merged.updated,
        "unchanged": merged.unchanged,
        "unsubscribed_kept": merged.unsubscribed_kept,
        "rejects_file": rejects.path,
        "seconds": round(seconds, 3),
        "rows_per_second": round(audience.rows / seconds, 1) if seconds else 0.0,
    }


def unsubscribe(
    args: dict[str, Any], _progress: Progress, _cancelled: Cancelled, *, state: StateDir, now_s: float
) -> dict[str, Any]:
    """Take an address off a list for good. args: list, address. Return: list, address, changed.

    Raises EcmError unknown_list, unknown_recipient.
    """
    name, address = str(args["list"]), str(args["address"])
    with closing(AudienceStore.open(state.audience_db)) as store:
        row = store.get(name)
        key = shm_address.key(address)
        changed = store.unsubscribe(row.id, key, now_s)
        if not changed and not store.knows(row.id, key):
            raise EcmError("unknown_recipient", f"not on the list {name}: {address}", field="address")
    return {"list": name, "address": address, "changed": changed}


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, the next one being made in a thread: SQLite works on the last without Python's lock."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def _merge(
    store: AudienceStore, name: str, aside: Aside, meter: Meter, now_s: float, dry_run: bool, rows: int, size: int
) -> tuple[Merged, int]:
    """Merge what was set aside; what became of it, and how many rows repeated an address."""
    found = store.find(name) if dry_run else store.ensure(name, now_s)
    merged, duplicates, done = Merged(), 0, 0
    meter.phase("merging", size)
    for members, repeated in _ahead(aside.parts()):
        duplicates += repeated
        some = store.merge(found.id if found else None, members, aside.names, now_s, dry_run=dry_run)
        merged = merged + some
        done += len(members) + repeated
        meter.at(size * done // aside.rows, rows)
    return merged, duplicates
