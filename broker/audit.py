"""Proves the account of a campaign from its files alone: `python -m broker.audit STATE CAMPAIGN [--json]`.

Reads shards, ledgers and, if it can, the store's final numbers; writes nothing and needs no engine, which may run
meanwhile. Start-up and reports count with the same `recount`.

What is proved, each failure being a discrepancy with its place:

- every shard has a ledger of as many rows, numbers have no gap, and the shards are those that the store knows;
- every row of every ledger is in a state that exists, and a summary that says it is true agrees with its rows;
- pending + in flight + deferred + sent + bounced + failed + suppressed + cancelled + uncertain = audience, which is
  the rows of the shards less the duplicates, and the audience that the snapshot counted;
- a campaign that has ended has nothing pending, in flight or deferred, and ended with these numbers.

Exit status 0: the account adds up; 1: it does not; 2: there is no such campaign.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from broker.stored import Stored, stored_campaign
from shm.files import bundle
from shm.files.bundle import Bundle
from shm.files.durable import FileFault
from shm.files.ledger import Counts, Ledger
from shm.files.shard import Shard

__all__ = ["Audit", "audit", "find_campaign", "instance_of", "main", "recount", "run", "shard_numbers"]

NINE: Final = (
    "pending", "in_flight", "deferred", "sent", "bounced", "failed", "suppressed", "cancelled", "uncertain",
)  # fmt: skip
NUMBERS: Final = ("audience", *NINE, "duplicates", "attempts", "resent")
UNFINISHED: Final = ("pending", "in_flight", "deferred")
ENDED: Final = frozenset({"finished", "cancelled"})
READS_MAX: Final = 10  # of a campaign that is retried, and ends again, while it is counted


@dataclass(frozen=True, slots=True)
class Audit:
    """What the files of one campaign say.

    counts          of all ledgers
    discrepancies   one line each, with its place; empty if the account adds up
    """

    bundle: Bundle
    counts: Counts
    discrepancies: list[str] = field(default_factory=list)

    def to_map(self) -> dict[str, Any]:
        """The numbers as the campaign object names them, `ok` and the discrepancies."""
        numbers = {name: getattr(self.counts, name) for name in NUMBERS}
        ok = not self.discrepancies
        return {
            "id": self.bundle.campaign,
            "name": self.bundle.name,
            **numbers,
            "ok": ok,
            "discrepancies": self.discrepancies,
        }


def recount(campaign_dir: Path, instance: str, campaign: int) -> Counts:
    """The counts of a campaign from the rows of its ledgers: 0.1 ms for 10,000 rows.

    Raises FileFault (another campaign's file, a damaged one) or OSError.
    """
    total = Counts()
    for number in shard_numbers(campaign_dir, "ledger"):
        total += _count(_path(campaign_dir, number, "ledger"), instance, campaign, number)[0]
    return total


def audit(state: StateDir, wanted: str) -> Audit:
    """Everything that can be proved about the campaign whose id or name is `wanted`. Raises EcmError."""
    instance = instance_of(state)
    found = find_campaign(state, instance, wanted)
    for _ in range(READS_MAX):
        stored = stored_campaign(state.store_db, found.campaign)  # first: what has ended changes by a retry alone
        counts, rows, discrepancies = _files(state.campaign(found.campaign), instance, found.campaign, stored)
        if stored is None or stored.state not in ENDED or stored_campaign(state.store_db, found.campaign) == stored:
            break
    discrepancies += _sums(counts, rows)
    if stored is not None:
        discrepancies += _against(counts, rows, stored)
    return Audit(found, counts, discrepancies)


def instance_of(state: StateDir) -> str:
    """The instance id of a state directory. Raises EcmError file_missing if it holds no instance."""
    try:
        return state.instance.read_text().strip()
    except FileNotFoundError:
        raise EcmError(
            "file_missing", f"no engine's state in {state.root}", hint="name the state directory with --state"
        ) from None


def find_campaign(state: StateDir, instance: str, wanted: str) -> Bundle:
    """The bundle of the campaign with this id (digits) or name. Raises EcmError unknown_campaign, FileFault."""
    hint = "a campaign has files from its launch on; `ctl campaign list` names all"
    if wanted.isascii() and wanted.isdigit():
        try:
            return bundle.read(state.bundle(int(wanted)), instance=instance, campaign=int(wanted))
        except FileNotFoundError:
            raise EcmError("unknown_campaign", f"no files of a campaign {wanted}", hint=hint) from None
    for path in sorted(state.campaigns.glob("*/bundle")):
        if path.parent.name.isdigit():
            found = bundle.read(path, instance=instance, campaign=int(path.parent.name))
            if found.name == wanted:
                return found
    raise EcmError("unknown_campaign", f"no files of a campaign named `{wanted}`", hint=hint)


def shard_numbers(campaign_dir: Path, kind: str) -> list[int]:
    """Numbers of the files `shard-000001.<kind>`, in order."""
    names = (path.stem.removeprefix("shard-") for path in campaign_dir.glob(f"shard-*.{kind}"))
    return sorted(int(name) for name in names if name.isdigit())


def _path(campaign_dir: Path, number: int, kind: str) -> Path:
    return campaign_dir / f"shard-{number:06d}.{kind}"


def _files(directory: Path, instance: str, campaign: int, stored: Stored | None) -> tuple[Counts, int, list[str]]:
    """Counts of all ledgers, rows of all shards, and what is wrong with the files themselves."""
    shards, ledgers = shard_numbers(directory, "shard"), shard_numbers(directory, "ledger")
    known = {*shards, *ledgers, *(stored.shards if stored else ())}
    total, rows, wrong = Counts(), 0, []
    for number in sorted(known | set(range(1, max(known, default=0) + 1))):
        size = counted = None
        try:
            size = _rows(_path(directory, number, "shard"), instance, campaign, number)
            rows += size
            counts, fault = _count(_path(directory, number, "ledger"), instance, campaign, number)
            total += counts
            counted = sum(counts.by_state)
            wrong += fault
        except FileFault as error:
            wrong.append(str(error))
        except FileNotFoundError as error:
            wrong.append(f"{error.filename}: the file is missing")
        if counted is not None and counted != size:
            wrong.append(f"{_path(directory, number, 'ledger')}: {counted:,} rows, its shard has {size:,}")
        if stored and size is not None and stored.shards.get(number, size) != size:
            wrong.append(
                f"{_path(directory, number, 'shard')}: {size:,} rows, the store says {stored.shards[number]:,}"
            )
    return total, rows, wrong


def _rows(path: Path, instance: str, campaign: int, number: int) -> int:
    shard = Shard.open(path, instance=instance, campaign=campaign, shard=number)
    shard.close()
    return shard.rows


def _count(path: Path, instance: str, campaign: int, number: int) -> tuple[Counts, list[str]]:
    """Counts of one ledger from its rows, and whether its summary says otherwise."""
    ledger = Ledger.open(path, instance=instance, campaign=campaign, shard=number, writable=False)
    try:
        before, counts, after = ledger.summary(), ledger.count(), ledger.summary()
    finally:
        ledger.close()
    # the same before and after: nobody opened a lease in between
    if before is None or before != after or _numbers(before) == _numbers(counts):
        return counts, []
    return counts, [f"{path}: the summary says {_numbers(before)}, the rows say {_numbers(counts)}"]


def _numbers(counts: Counts) -> dict[str, int]:
    return {name: number for name in NUMBERS if (number := getattr(counts, name))}


def _sums(counts: Counts, rows: int) -> list[str]:
    """Invariant 1: every recipient of the shards is in exactly one of the nine counts."""
    nine, audience = sum(getattr(counts, name) for name in NINE), rows - counts.duplicates
    return [] if nine == audience else [f"the nine counts sum to {nine:,}, the audience is {audience:,}"]


def _against(counts: Counts, rows: int, stored: Stored) -> list[str]:
    """What the store was told at the snapshot, and at the end if there was one."""
    ended = stored.state in ENDED
    ours = {name: getattr(counts, name) for name in NUMBERS}
    theirs = stored.counts
    compared = NUMBERS if ended else ("audience", "duplicates")
    wrong = [
        f"{name}: {ours[name]:,} in the files, {theirs[name]:,} in the store"
        for name in compared
        if isinstance(theirs.get(name), int) and theirs[name] != ours[name]
    ]
    if isinstance(theirs.get("rows"), int) and theirs["rows"] - (theirs.get("rejected") or 0) != rows:
        kept = theirs["rows"] - (theirs.get("rejected") or 0)
        wrong.append(f"rows: {rows:,} in the files, {kept:,} taken by the snapshot")
    if ended:
        wrong += [f"{name}: {ours[name]:,}, though the campaign is {stored.state}" for name in UNFINISHED if ours[name]]
    return wrong


def run(work: Callable[[], Iterator[EcmError]], *, as_json: bool) -> int:
    """Run a command that only reads files; say what went wrong on stderr; its exit status.

    work   does it and yields the errors that did not stop it
    """
    status = 0
    try:
        for error in work():
            status = max(status, _tell(error, as_json=as_json))
    except EcmError as error:
        return _tell(error, as_json=as_json)
    except FileFault as error:
        return _tell(EcmError("discrepancy", str(error)), as_json=as_json)
    except PermissionError as error:
        hint = "run it as the user that the engine runs as"
        return _tell(EcmError("file_unreadable", "permission denied", file=error.filename, hint=hint), as_json=as_json)
    except OSError as error:
        return _tell(EcmError("io_failed", error.strerror or str(error), file=error.filename), as_json=as_json)
    return status


def _tell(error: EcmError, *, as_json: bool) -> int:
    text = json.dumps({"error": error.to_map()}) if as_json else error.text()
    sys.stderr.write(text + "\n")
    return error.exit


def _report(found: Audit, *, as_json: bool) -> Iterator[EcmError]:
    numbers: Mapping[str, Any] = found.to_map()
    if as_json:
        sys.stdout.write(json.dumps(numbers) + "\n")
    else:
        sys.stdout.writelines(f"{name}  {numbers[name]:,}\n" for name in NUMBERS)
        wrong = len(found.discrepancies)
        sys.stdout.write(f"verdict  {f'{wrong:,} discrepancies' if wrong else 'ok: everybody is accounted for'}\n")
    sys.stdout.flush()
    for discrepancy in found.discrepancies:
        yield EcmError("discrepancy", discrepancy)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the head of this module."""
    parser = argparse.ArgumentParser(prog="python -m broker.audit", description="Prove the account of a campaign.")
    parser.add_argument("state", type=Path, help="the state directory")
    parser.add_argument("campaign", help="id or name")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args(arguments)

    def work() -> Iterator[EcmError]:
        return _report(audit(StateDir(options.state), options.campaign), as_json=options.json)

    return run(work, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
