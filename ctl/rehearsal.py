"""`ctl send CAMPAIGN.toml --rehearse`: the real campaign against a server that delivers nothing.

A throw-away engine in a temporary directory sends the campaign: same file, templates, recipients, lists and
suppressions. All its relays, called as in the settings, are one rehearsal server started for it. The real engine need
not run, and neither it nor its state is touched.

Invariants
- Nobody real can be mailed: the engine that sends knows no address of a real relay.
- Rate limits are off, so that it ends soon; what they will cost is told instead. Retries come after a second, and who
  was deferred for GIVE_UP_S fails.
- However it ends, nothing is left but the directory of messages it names; killed, it leaves no process.
"""

import csv
import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.contract.campaign import CampaignSpec, parse_campaign
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from broker.contract.settings import Settings, load_settings
from ctl import live, output
from ctl.campaign_file import CampaignFile
from ctl.client import LONG_S, Client, idempotency_key
from ctl.follow import ENDED, not_launched
from ctl.modules import program
from ctl.plan import binding_limit
from ctl.rehearsal_report import Found, Troubles, keep_messages, kind_of, print_found
from ctl.rehearsal_state import copy_lists, copy_suppressions, settings_text
from ctl.stage import Stage
from ctl.toml_text import toml_text

__all__ = ["Wanted", "rehearse"]

GIVE_UP_S = 20  # an address that is always deferred ends the rehearsal only when it is given up
WAITING_S = 15.0  # a campaign that waits so long, with a server that is there, waits for something we will not see
LOOK_S = 0.1
MESSAGES = 3
TROUBLED = ("failed", "bounced", "deferred", "uncertain")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for. keep: where messages go, None = a new directory; sink: options of the server."""

    keep: Path | None
    sink: tuple[str, ...]


def rehearse(content: CampaignFile, real: StateDir, config: Path | None, wanted: Wanted, *, as_json: bool) -> int:
    """Rehearse a campaign and print what was found; returns the exit status: 1 if it did not come to its end.

    Raises EcmError for what is wrong with the campaign or its settings, or with the world.
    """
    content.check()
    args = content.args
    try:
        spec = parse_campaign(args["text"], args["file"], args["attached"], args.get("recipients"))
        settings = load_settings(config)
        settings.weights(spec.relay)
    except EcmError as error:
        raise content.placed(error) from None
    stage = Stage("rehearsal")
    try:
        found = _Run(stage, content, spec, settings, wanted).run(real)
    except EcmError as error:
        if error.code in ("start_failed", "internal"):
            stage.tell_log()
        raise
    finally:
        stage.clean()
    if as_json:
        output.document(found.document())
    else:
        print_found(found)
    return 0 if found.campaign["state"] == "finished" else 1


class _Run:
    """One rehearsal on its stage."""

    def __init__(
        self, stage: Stage, content: CampaignFile, spec: CampaignSpec, settings: Settings, wanted: Wanted
    ) -> None:
        self._stage = stage
        self._content = content
        self._spec = spec
        self._settings = settings
        self._wanted = wanted
        self._fresh: tuple[int, float] | None = None  # attempts and seconds when everybody had been attempted once

    def run(self, real: StateDir) -> Found:
        """All steps."""
        kept = self._keep()
        try:
            found = self._rehearsed(real, kept)
        except BaseException:
            if self._wanted.keep is None:  # a directory of ours, of which nobody would be told
                shutil.rmtree(kept)
            raise
        if self._wanted.keep is None and not found.messages and not found.rejects.rows:
            kept.rmdir()
            found.kept = None
        return found

    def _rehearsed(self, real: StateDir, kept: Path) -> Found:
        stage = self._stage
        host, port = stage.start_sink(MESSAGES, *self._wanted.sink)  # first: it knows which faults cannot be
        suppressions = copy_suppressions(real, stage.state)
        output.say(f"rehearsal: {suppressions}")
        copy_lists(real, stage.state, self._spec)
        config = stage.place / "ecm.toml"
        config.write_text(settings_text(self._settings, host, port), encoding="utf-8")
        output.say(f"rehearsal: an engine in {stage.place}, a relay that delivers nothing; limits are off")
        stage.start_engine(config)
        with Client(stage.state) as client:
            checked = self._check(client)
            campaign = self._send(client)
        troubles = self._troubles(campaign)
        counts = stage.stop_sink()
        least_s, limit = binding_limit(self._spec, campaign["audience"] - campaign["suppressed"], self._relays())
        found = Found(
            campaign, counts, self._fresh, least_s, limit, kept, suppressions, list(checked["warnings"]), troubles
        )
        found.rejects = self._rejects(campaign, kept)
        found.messages = keep_messages(stage.kept / "messages.ndjson", kept)
        found.errors = _errors(campaign, counts)
        return found

    def _keep(self) -> Path:
        if self._wanted.keep is None:
            return Path(tempfile.mkdtemp(prefix="ecm-rehearsed-"))
        wanted = self._wanted.keep.absolute()
        try:
            wanted.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EcmError("io_failed", f"cannot make the directory: {error.strerror}", file=str(wanted)) from error
        return wanted

    def _relays(self) -> dict[str, Any]:
        """The real relays as `relay.list` answers them, as far as a plan looks at them."""
        relays = [
            {"name": name, "host": relay.host, "port": relay.port, "rate": relay.rate.to_map()}
            for name, relay in self._settings.relays.items()
        ]
        return {"relays": relays, "pools": self._settings.pools}

    def _check(self, client: Client) -> dict[str, Any]:
        """All that a launch would check, of the file as it was written. Raises the first error, with its place."""
        output.say("rehearsal: checking the message for the whole audience ...")
        with live.view():
            checked = client.request("campaign.check", self._content.args, within_s=LONG_S)
        for warning in checked["warnings"]:
            output.say(f"warning: {warning}")
        if not checked["ok"]:
            errors = [self._content.placed(EcmError.from_map(error)) for error in checked["errors"]]
            for error in errors[1:]:
                output.fail(error, as_json=False)
            raise errors[0]
        return checked

    def _send(self, client: Client) -> dict[str, Any]:
        """The campaign without its limits, to its end."""
        document = self._content.document | {"rate": {"per_second": 0}, "give_up_s": GIVE_UP_S}
        args = self._content.args | {"text": toml_text(document)}
        number = client.request("campaign.send", args, key=idempotency_key(), within_s=LONG_S)["campaign"]
        waits_since_s: float | None = None
        with live.view() as view:
            while True:
                campaign = client.request("campaign.show", {"campaign": number})
                state = campaign["state"]
                if state == "draft":
                    raise not_launched(campaign)
                view.campaign(campaign)
                if self._fresh is None and not campaign["pending"] and campaign["seconds"]:
                    self._fresh = (campaign["attempts"], campaign["seconds"])
                if state in ENDED or state == "paused":
                    return campaign
                if state != "waiting":
                    waits_since_s = None
                elif waits_since_s is None:
                    waits_since_s = time.monotonic()
                elif time.monotonic() > waits_since_s + WAITING_S:
                    return campaign
                time.sleep(LOOK_S)

    def _troubles(self, campaign: dict[str, Any]) -> Troubles:
        """Rows of the export of people who did not get it."""
        people = sum(campaign[state] for state in TROUBLED)
        troubles = Troubles()
        if not people:
            return troubles
        command = program("broker.export", ("--ndjson", "--", str(self._stage.state.root), str(campaign["id"])))
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=self._stage.environment
        ) as export:
            assert export.stdout is not None
            for line in export.stdout:
                row = json.loads(line)
                if row["state"] in TROUBLED:
                    troubles.add(kind_of(row), row)
                    if troubles.people == people:
                        break
            export.kill()
        return troubles

    def _rejects(self, campaign: dict[str, Any], kept: Path) -> Troubles:
        """Keep the rejects file; what is in it."""
        rejects = Troubles()
        path = campaign["rejects_file"]
        if not path or not campaign["rejected"]:
            return rejects
        copy = kept / "rejects.csv"
        copy.write_bytes(Path(path).read_bytes())
        campaign["rejects_file"] = str(copy)
        with copy.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                rejects.add((row["reason"],), {"line": int(row["line"]), "reason": row["reason"], "row": row["row"]})
        return rejects


def _errors(campaign: dict[str, Any], counts: dict[str, int]) -> list[str]:
    """What should not be: a campaign that stopped, and an account that does not fit what the server has seen."""
    errors = []
    if campaign["state"] != "finished":
        reason = campaign["reason"] or {}
        errors.append(f"the campaign is {campaign['state']}: {reason.get('message', 'no reason was told')}")
    most = campaign["sent"] + campaign["uncertain"] + campaign["resent"]
    if campaign["state"] == "finished" and not campaign["sent"] <= counts["messages"] <= most:
        errors.append(f"the account says {campaign['sent']:,} sent, the server has taken {counts['messages']:,}")
    return errors
