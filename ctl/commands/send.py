"""`ctl send`: a campaign file goes in, its account comes out.

Creates and launches the campaign, or follows the one of that name that is under way, and waits for its end. Leaving
(Ctrl-C, a closed terminal) stops nothing: the engine goes on.
"""

from pathlib import Path
from typing import Any

import click

from broker.contract.errors import EcmError
from ctl import live, output
from ctl.campaign_file import CampaignFile
from ctl.client import LONG_S, Client, idempotency_key
from ctl.commands.campaign import finished, follow
from ctl.options import common, options

__all__ = ["command"]

_SHARE = click.FloatRange(0, 1)


@click.command("send", help="Send a campaign file and wait for its account.")
@common
@click.argument("file", metavar="CAMPAIGN.toml")
@click.option("--recipients", metavar="FILE", help="send to these instead of the audience the campaign file names")
@click.option("--wait/--no-wait", default=True, help="wait for the end (the default), or only for the checks")
@click.option("--yes", is_flag=True, help="ask nothing")
@click.option("--rehearse", is_flag=True, help="send to a server that delivers nothing, and tell how it went")
@click.option("--keep", metavar="DIR", help="of a rehearsal: keep three messages and the rejects here")
@click.option(
    "--latency", type=click.FloatRange(0, 3_600_000), metavar="MS", help="of a rehearsal: the relay is so slow"
)
@click.option("--defer", type=_SHARE, metavar="P", help="of a rehearsal: share that the relay defers at first")
@click.option("--bounce", type=_SHARE, metavar="P", help="of a rehearsal: share that the relay refuses")
def command(file: str, recipients: str | None, wait: bool, yes: bool, rehearse: bool, **rehearsal: Any) -> int:
    """Send."""
    if rehearse:
        if not wait:
            text = "`--no-wait` does not go with `--rehearse`: a rehearsal lasts as long as its command"
            raise EcmError("invalid_value", text, hint="leave one of them out")
        return _rehearse(file, recipients, rehearsal)
    for name, value in rehearsal.items():
        if value is not None:
            raise click.UsageError(f"`--{name}` is for `--rehearse`")
    _send(file, recipients, wait, yes)
    return 0


def _rehearse(file: str, recipients: str | None, rehearsal: dict[str, Any]) -> int:
    """Load what a rehearsal needs, and rehearse."""
    from ctl.rehearsal import Wanted, rehearse

    chosen = options()
    keep = rehearsal.pop("keep")
    faults = [text for name, value in rehearsal.items() if value is not None for text in (f"--{name}", str(value))]
    wanted = Wanted(Path(keep) if keep is not None else None, tuple(faults))
    content = CampaignFile(file, recipients)
    return rehearse(content, chosen.state_dir, chosen.config_path, wanted, as_json=chosen.json)


def _send(file: str, recipients: str | None, wait: bool, yes: bool) -> None:
    chosen = options()
    with Client(chosen.state_dir) as client:
        content = CampaignFile(file, recipients)
        content.check()
        if not yes and output.interactive() and not _under_way(client, content):
            _ask(client, content)
        try:
            sent = client.request("campaign.send", content.args, key=idempotency_key(), within_s=LONG_S)
        except EcmError as error:
            raise content.placed(error) from None
        number = sent["campaign"]
        name = content.name or number
        output.say(f"campaign {name} (id {number}) {'is under way' if sent['followed'] else 'is being prepared'}")
        try:
            campaign = follow(client, number, str(name), checked_only=not wait)
        except EcmError as error:
            raise content.placed(error) from None
    for warning in campaign.get("warnings", ()):
        output.say(f"warning: {warning}")
    if wait:
        finished(campaign)
    elif chosen.json:
        output.document(campaign)
    else:
        output.account(campaign)


def _under_way(client: Client, content: CampaignFile) -> bool:
    """Whether there is nothing to ask: the campaign is being sent already, or has ended, which the engine refuses."""
    if content.name is None:
        return False
    try:
        state: str = client.request("campaign.show", {"campaign": content.name})["state"]
    except EcmError as error:
        if error.code == "unknown_campaign":
            return False
        raise
    return state != "draft"


def _ask(client: Client, content: CampaignFile) -> None:
    """Show what would be sent, and ask. Raises EcmError: what the checks find; campaign_cancelled if it is a no."""
    from ctl.plan import plan

    output.say("checking the message for the whole audience ...")
    with live.view():
        found: dict[str, Any] = client.request("campaign.check", content.args, within_s=LONG_S)
    for warning in found["warnings"]:
        output.say(f"warning: {warning}")
    if not found["ok"]:
        raise content.placed(EcmError.from_map(found["errors"][0]))
    output.points(plan(content.args, found, client.request("relay.list")))
    if not click.confirm("send it?", err=True):
        raise EcmError("campaign_cancelled", "nothing was sent: you did not say yes", hint="--yes asks nothing")
