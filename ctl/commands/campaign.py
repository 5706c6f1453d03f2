"""`ctl campaign`: campaigns by what may be done to them. CAMPAIGN is an id or a name."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from broker.contract.errors import EcmError
from ctl import live, output
from ctl.campaign_file import CampaignFile
from ctl.client import LONG_S, Client, idempotency_key
from ctl.follow import follow_campaign
from ctl.modules import become
from ctl.options import Noun, Options, common, common_but_state, options

__all__ = ["command", "finished", "follow"]

RETRIED = ("failed", "uncertain")

_CAMPAIGN = click.argument("campaign", metavar="CAMPAIGN", callback=lambda _c, _p, text: _reference(text))
_FILE = click.argument("file", metavar="CAMPAIGN.toml")
_RECIPIENTS = click.option("--recipients", metavar="FILE", help="in place of the audience the campaign file names")


def _reference(text: str) -> str | int:
    """An id or a name, as the engine is asked: a name is never all digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text


@click.group("campaign", cls=Noun, help="Campaigns. CAMPAIGN is an id or a name.")
@common
def command() -> None:
    """The noun."""


# what one makes of a file


@command.command("create", help="Keep a campaign as a draft; a draft of the same name is replaced.")
@common
@_FILE
@_RECIPIENTS
def create(file: str, recipients: str | None) -> None:
    """Keep a draft."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        content = CampaignFile(file, recipients)
        content.check()
        try:
            number = client.request("campaign.create", content.args, key=idempotency_key())["campaign"]
        except EcmError as error:
            raise content.placed(error) from None
        campaign = client.request("campaign.show", {"campaign": number})
    if chosen.json:
        output.document(campaign)
        return
    output.say(
        f"campaign {campaign['name']} (id {number}) is a draft; `ctl campaign launch {campaign['name']}` sends it"
    )


@command.command("check", help="All that a launch would check, over the whole audience; nothing is sent.")
@common
@_FILE
@_RECIPIENTS
def check(file: str, recipients: str | None) -> None:
    """Everything that is wrong, and what may not be meant so."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        found = _checked(client, file, recipients)
    errors = [EcmError.from_map(error) for error in found["errors"]]
    if chosen.json:
        output.document(found)
    else:
        for warning in found["warnings"]:
            output.say(f"warning: {warning}")
        for error in errors[:-1]:
            output.fail(error, as_json=False)
        names = ("rows", "rejected", "duplicates", "suppressed", "audience")
        output.pairs([(name, found[name]) for name in names if found.get(name) is not None])
    if errors:
        raise errors[0] if chosen.json else errors[-1]
    if not chosen.json:
        output.say("ok: it can be sent")


def _checked(client: Client, file: str, recipients: str | None) -> dict[str, Any]:
    """The answer of `campaign.check`, with what is wrong with the files themselves."""
    try:
        content = CampaignFile(file, recipients)
        found = client.request("campaign.check", content.args, within_s=LONG_S)
    except EcmError as error:
        if error.exit != 2:
            raise
        return {"ok": False, "errors": [error.to_map()], "warnings": []}
    # What is wrong with a file the engine finds too, in other words: once is enough.
    known = {(error.file, error.line) for error in content.problems}
    known |= {(content.args.get("recipients"), None)} if content.problems else set()
    told = [content.placed(EcmError.from_map(error)) for error in found["errors"]]
    errors = content.problems + [error for error in told if (error.file, error.line) not in known]
    return {**found, "ok": not errors, "errors": [error.to_map() for error in errors]}


# what one asks about them


@command.command("list", help="The campaigns, newest first.")
@common
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="at most so many")
def list_(limit: int) -> None:
    """A line for each."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        found = client.request("campaign.list", {"limit": limit})
    if chosen.json:
        output.document(found)
        return
    columns = ("id", "name", "state", "audience", "sent", "deferred", "bounced", "failed", "created", "finished")
    rows = [[one[name] for name in columns] for one in found["campaigns"]]
    output.table(columns, rows, right=("id", "audience", "sent", "deferred", "bounced", "failed"))


@command.command("show", help="One campaign and its account.")
@common
@_CAMPAIGN
def show(campaign: str | int) -> None:
    """The account."""
    _print(_asked("campaign.show", campaign))


@command.command("why", help="Why a campaign is not faster, or does not send, and what to do.")
@common
@_CAMPAIGN
def why(campaign: str | int) -> None:
    """What holds it back."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        found = client.request("campaign.why", {"campaign": campaign})
    if chosen.json:
        output.document(found)
        return
    output.line(f"campaign {campaign} is {found['state']}")
    for cause in found["causes"]:
        until = f" (until {output.moment(cause['until'], time.time())})" if cause["until"] else ""
        since = f" (since {output.moment(cause['since'], time.time())})" if cause["since"] else ""
        output.line(f"- {cause['message']}{since}{until}")
        if cause["hint"]:
            output.line(f"  {cause['hint']}")


@command.command("wait", help="Wait for the end of a campaign; the account follows.")
@common
@_CAMPAIGN
@click.option("--timeout", type=click.FloatRange(0), metavar="S", help="give up after so many seconds: exit 4")
def wait(campaign: str | int, timeout: float | None) -> None:
    """Follow a campaign."""
    with Client(options().state_dir) as client:
        found = client.request("campaign.show", {"campaign": campaign})
        ended = follow(client, found["id"], found["name"], within_s=timeout)
    finished(ended)


@command.command("verify", help="Prove the account of a campaign from its files alone. Needs no engine.")
@common
@_CAMPAIGN
def verify(campaign: str | int) -> None:
    """Become the audit."""
    chosen = options()
    become("broker.audit", ["--json"] * chosen.json + ["--", str(chosen.state_dir.root), str(campaign)])


@command.command("export", help="Every recipient and its outcome, to stdout.")
@common
@_CAMPAIGN
@click.option("--csv", "form", flag_value="--csv", default="--csv", help="CSV with a header (the default)")
@click.option("--ndjson", "form", flag_value="--ndjson", help="one JSON object a line; so does --json")
def export(campaign: str | int, form: str) -> None:
    """Become the export."""
    chosen = options()
    form = "--ndjson" if chosen.json else form
    with Client(chosen.state_dir) as client:
        campaign = client.request("campaign.show", {"campaign": campaign})["id"]
    become("broker.export", [form, "--", str(chosen.state_dir.root), str(campaign)])


# what one does to them


@command.command("launch", help="Launch a draft; returns when its checks have passed.")
@common
@_CAMPAIGN
def launch(campaign: str | int) -> None:
    """Launch."""
    with Client(options().state_dir) as client:
        found = client.request("campaign.launch", {"campaign": campaign}, key=idempotency_key())
        found = follow(client, found["id"], found["name"], checked_only=True)
    _print(found)


def _verb(name: str, what: str) -> Callable[[Callable[..., None]], click.Command]:
    return lambda function: command.command(name, help=what)(common(_CAMPAIGN(function)))


@_verb("pause", "Stop sending; answers when no further mail can leave.")
def pause(campaign: str | int) -> None:
    """Pause."""
    _change("campaign.pause", campaign)


@_verb("resume", "Go on with a paused campaign.")
def resume(campaign: str | int) -> None:
    """Resume."""
    _change("campaign.resume", campaign)


@_verb("cancel", "End a campaign for good; answers when no further mail can leave.")
def cancel(campaign: str | int) -> None:
    """Cancel."""
    _change("campaign.cancel", campaign)


def _states(context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> list[str]:
    """`failed,uncertain` of this command's own `--state`; a directory after it is the engine's, as everywhere."""
    states: list[str] = []
    for value in given:
        words = value.split(",")
        if set(words) <= set(RETRIED):
            states += words
        elif not value:
            raise click.BadParameter("it is empty; it is failed, uncertain or both")
        elif "/" in value or Path(value).is_dir():
            context.ensure_object(Options).state = value
        else:
            raise click.BadParameter(f"nobody can be tried again who is `{value}`; it is failed, uncertain or both")
    return [word for word in RETRIED if word in states] or ["failed"]


@command.command(
    "retry", help="Try people again who failed, or of whom nobody knows; works on a finished campaign too."
)
@common_but_state
@_CAMPAIGN
@click.option(
    "--state", "states", multiple=True, metavar="STATES", callback=_states,
    help="`failed` (the default), `uncertain`, or `failed,uncertain`: who may have got it already gets it again",
)  # fmt: skip
@click.option("--wait/--no-wait", default=False, help="wait for the end, as `send` does")
def retry(campaign: str | int, states: list[str], wait: bool) -> None:
    """Retry."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        args = {"campaign": campaign, "states": states}
        found = client.request("campaign.retry", args, key=idempotency_key(), within_s=LONG_S)
        now = found["campaign"]
        output.say(f"campaign {now['name']}: {_retried(found['retried'], states)}")
        if wait and now["state"] != "finished":
            now = follow(client, now["id"], now["name"])
    if wait:
        finished(now)
    elif chosen.json:
        output.document(found)
    else:
        output.account(now)


def _retried(retried: dict[str, int], states: list[str]) -> str:
    """How many are tried again, said clearly when it is nobody."""
    told = [f"{retried[state]:,} {state}" for state in states if retried[state]]
    if not told:
        return f"nobody is {' or '.join(states)}, so nobody is tried again"
    one = sum(retried.values()) == 1
    return f"{' and '.join(told)} {'is' if one else 'are'} tried again"


def _change(op: str, campaign: str | int) -> None:
    """Do it, and say exactly how many messages have gone out."""
    found = _asked(op, campaign, key=idempotency_key())
    if not options().json and found["sent"] is not None:
        flight = f", {found['in_flight']:,} still in flight" if found["in_flight"] else ""
        output.say(f"campaign {found['name']} is {found['state']}: {found['sent']:,} went out{flight}")
    _print(found)


# what `send` does too


def follow(
    client: Client, number: int, name: str, *, checked_only: bool = False, within_s: float | None = None
) -> dict[str, Any]:
    """Follow a campaign on the terminal; Ctrl-C says how to go on following it."""
    try:
        with live.view() as view:
            return follow_campaign(client, number, view, checked_only=checked_only, within_s=within_s)
    except KeyboardInterrupt:
        output.say(f"campaign {name} goes on; follow it with `{options().command(f'campaign wait {name}')}`")
        raise
    except EcmError as error:
        if error.code == "no_engine":  # it went away meanwhile; nothing of the campaign is lost
            wait, start = (options().command(words) for words in (f"campaign wait {name}", "start"))
            error.hint = f"`{start}` starts one, which goes on with it; `{wait}` follows"
        raise


def finished(campaign: dict[str, Any]) -> None:
    """Print the account of a campaign that has ended. Raises EcmError campaign_cancelled if it was cancelled."""
    name, sent, audience = campaign["name"], output.number(campaign["sent"]), output.number(campaign["audience"])
    took = f" in {output.duration(campaign['seconds'])}" if campaign["seconds"] else ""
    output.say(f"campaign {name} is {campaign['state']}: {sent} of {audience} sent{took}")
    if not options().json:
        output.account(campaign)
    if campaign["state"] == "cancelled":
        raise EcmError("campaign_cancelled", f"campaign `{name}` was cancelled", count=campaign["sent"])
    if options().json:
        output.document(campaign)


def _asked(op: str, campaign: str | int, *, key: str | None = None) -> dict[str, Any]:
    with Client(options().state_dir) as client:
        return client.request(op, {"campaign": campaign}, key=key)


def _print(campaign: dict[str, Any]) -> None:
    if options().json:
        output.document(campaign)
    else:
        output.account(campaign)
