"""From an audience to the files a campaign is sent by: shards, ledgers, and the bundle last.

One pass: rows are parsed, checked and packed straight into shards while their keys are kept aside for the count of
duplicates; then every shard gets its ledger with the rows marked that are out from the beginning.

Invariants
- When `snapshot` returns, every file of the campaign is durable, and the bundle was written after all others.
- When it raises, nothing of the campaign's directory remains but `rejects.csv`.
- rows = rejected + duplicates + audience.
- `check` does the same work and writes nothing.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.loader.census import Census, Result, Silenced
from actors.loader.faults import explain_errno
from actors.loader.preview import Checks
from actors.loader.progress import Cancelled, Meter, Progress
from actors.loader.recipients import Audience, RecipientsFile
from actors.loader.rejects import RejectFile
from actors.loader.shards import ShardFeed
from actors.message.compose import Composer
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from shm.files import bundle
from shm.files.bundle import Bundle
from shm.files.shard import GROUP_OTHER

if TYPE_CHECKING:
    from actors.loader.kept import ListAudience

__all__ = ["Request", "check", "snapshot"]

DIRECTORY_MODE = 0o710


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of both jobs.

    campaign       its id (a check has none: 0)        spec      CampaignSpec.to_map()
    relays, retry  as the bundle keeps them            instance  32 hexadecimal digits
    sender_count   processes that will send, for the size of the first shards
    """

    campaign: int
    spec: dict[str, Any]
    instance: str
    relays: list[list[Any]] = field(default_factory=list)
    retry: dict[str, Any] = field(default_factory=dict)
    sender_count: int = 1

    @classmethod
    def from_args(cls, args: dict[str, Any]) -> Request:
        """The request in a job's arguments."""
        return cls(
            campaign=int(args.get("campaign") or 0),
            spec=args["spec"],
            instance=args["instance"],
            relays=[list(pair) for pair in args.get("relays") or []],
            retry=args.get("retry") or {},
            sender_count=int(args.get("sender_count") or 1),
        )


def snapshot(
    args: dict[str, Any], progress: Progress, cancelled: Cancelled, *, state: StateDir, now_s: int
) -> dict[str, Any]:
    """Make a campaign's files and say what is in them.

    args     see `Request`
    now_s    engine time, seconds
    return   rows, rejected, duplicates, suppressed, audience, rejects_file, shards [[number, group, rows]], warnings,
             suppressed_position, seconds, rows_per_second
    Raises EcmError for everything that is wrong with the audience, the templates or the disk.
    """
    request = Request.from_args(args)
    directory = state.campaign(request.campaign)
    rejects = RejectFile(None)
    try:
        with explain_errno(directory):
            _clear(directory)
            directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            rejects = RejectFile(state.rejects(request.campaign))
            return _Work(request, progress, cancelled, state, now_s, rejects).snapshot()
    except BaseException:
        rejects.close()
        _clear(directory)
        raise


def check(
    args: dict[str, Any], progress: Progress, cancelled: Cancelled, *, state: StateDir, now_s: int
) -> dict[str, Any]:
    """Say what a snapshot would find: {"ok", "errors": [error maps], "warnings", and the snapshot's counts}.

    Raises EcmError only if the job itself fails (cancelled, disk full); what is wrong with the campaign is an answer.
    """
    request = Request.from_args(args)
    with explain_errno(state.root):
        return _Work(request, progress, cancelled, state, now_s, RejectFile(None)).check()


class _Work:
    """One run over an audience."""

    def __init__(
        self,
        request: Request,
        progress: Progress,
        cancelled: Cancelled,
        state: StateDir,
        now_s: int,
        rejects: RejectFile,
    ) -> None:
        self._request = request
        self._state = state
        self._now_s = now_s
        self._rejects = rejects
        self._meter = Meter(progress, cancelled)
        self._checks: Checks | None = None
        self._feed: ShardFeed | None = None

    def snapshot(self) -> dict[str, Any]:
        """Write shards, ledgers and, last of all, the bundle; the job's result. Raises EcmError."""
        request = self._request
        silenced = Silenced(self._state.store_db)
        census = Census(silenced, self._state.campaign(request.campaign))
        feed = self._feed = ShardFeed(self._state, request.instance, request.campaign, request.sender_count)
        try:
            with closing(self._open()) as audience:
                result = self._read(audience, census)
                errors = self._checks.finish(audience.names) if self._checks else []
                if errors:
                    raise errors[0]
                counts = self._counts(audience, result)
                names, address = audience.names, audience.address
            self._meter.phase("ledgers", 0)
            feed.seal(result.duplicates, result.suppressed, self._now_s)
        finally:
            feed.abandon()
            census.close()
        self._rejects.close()
        bundle.write(self._state.bundle(request.campaign), self._bundle(silenced.position, names, address))
        return {
            **counts,
            "rejects_file": self._rejects.path,
            "shards": [[shard.number, GROUP_OTHER, shard.rows] for shard in feed.shards],
            "warnings": self._warnings(counts),
            "suppressed_position": silenced.position,
            **self._speed(counts["rows"]),
        }

    def check(self) -> dict[str, Any]:
        """Do all of that but write: {"ok", "errors", "warnings", counts}."""
        silenced = Silenced(self._state.store_db)
        census = Census(silenced, self._state.root)
        counts: dict[str, Any] = dict.fromkeys(("rows", "rejected", "duplicates", "suppressed", "audience"))
        errors: list[EcmError] = []
        try:
            with closing(self._open()) as audience:
                result = self._read(audience, census)
                errors = self._checks.finish(audience.names) if self._checks else []
                counts = self._counts(audience, result)
        except EcmError as error:
            if error.exit != 2:
                raise
            errors.append(error)
        finally:
            census.close()
        warnings = self._warnings(counts) if not errors else []
        return {"ok": not errors, "errors": [error.to_map() for error in errors], "warnings": warnings, **counts}

    def _open(self) -> RecipientsFile | ListAudience:
        spec = self._request.spec
        if spec.get("audience"):
            from actors.loader.kept import ListAudience

            return ListAudience(self._state.audience_db, spec["audience"])
        path = spec.get("recipients")
        if not path:
            raise EcmError("missing_key", "a campaign needs `recipients` or `audience`", field="recipients")
        return RecipientsFile(path, spec.get("email_column"), self._rejects.add)

    def _read(self, audience: Audience, census: Census) -> Result:
        """Take every row of the audience."""
        composer = Composer(self._request.spec, self._request.instance, self._request.campaign, audience.address)
        checks = self._checks = Checks(self._request.spec, composer, audience.file, self._now_s)
        audience.wanted = checks.wanted
        self._meter.phase("reading", audience.size)
        for batch in audience.batches():
            checks.look(batch)
            census.add(batch.keys)
            if self._feed is not None:
                self._feed.add(batch.keys, batch.records)
            self._meter.at(batch.end, audience.rows)
        self._meter.phase("duplicates", audience.size)
        return census.finish(lambda share: self._meter.at(round(share * audience.size), audience.rows))

    def _counts(self, audience: Audience, result: Result) -> dict[str, Any]:
        """The sums of the snapshot. Raises EcmError no_recipients if nobody is left to mail."""
        duplicates, suppressed = len(result.duplicates), len(result.suppressed)
        taken = audience.rows - audience.rejected
        counts = {
            "rows": audience.rows,
            "rejected": audience.rejected,
            "duplicates": duplicates,
            "suppressed": suppressed,
            "audience": taken - duplicates,
        }
        if taken == duplicates + suppressed:
            first = self._rejects.first
            raise EcmError(
                "no_recipients",
                f"nobody left to mail: of {audience.rows} rows {audience.rejected} rejected, "
                f"{duplicates} duplicates, {suppressed} suppressed",
                file=audience.file,
                line=first.line if first else None,
                count=0,
                hint=f"the first rejected row: {first.reason}" if first else None,
            )
        return counts

    def _warnings(self, counts: dict[str, Any]) -> list[str]:
        found = self._checks.warnings() if self._checks else []
        first = self._rejects.first
        if first:
            number = counts["rejected"]
            found.append(f"{number} row{'s' * (number != 1)} rejected, the first on line {first.line}: {first.reason}")
        return found

    def _bundle(self, position: int, names: list[str], address: str) -> Bundle:
        request = self._request
        return Bundle(
            instance=request.instance,
            campaign=request.campaign,
            name=request.spec["name"],
            spec=request.spec,
            relays=request.relays,
            suppressed_position=position,
            retry=request.retry,
            fields=names,
            email_field=address,
            created_s=float(self._now_s),
        )

    def _speed(self, rows: int) -> dict[str, Any]:
        seconds = self._meter.seconds
        return {"seconds": round(seconds, 3), "rows_per_second": round(rows / seconds, 1) if seconds else 0.0}


def _clear(directory: Path) -> None:
    """Remove what an earlier or failed try left; the side file of rejected rows is for people and stays."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.name != "rejects.csv":
            path.unlink(missing_ok=True)
    if not any(directory.iterdir()):
        directory.rmdir()
