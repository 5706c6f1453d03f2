"""The operations of the control API: what each takes, what it answers, whether it changes anything.

The one declaration from which the broker validates requests, docs/protocol.md is written, and the hygiene tests know
that every operation has a handler, a command and a page. May import pydantic; `ctl` never loads it: requests leave
as plain maps and the broker validates them.

Invariants
- Arguments are strict and closed: no conversions, an unknown key is an error that names the nearest known one.
- Every argument has a bound and a description; the description is what its error message says.
- Operations and arguments are added, never renamed, within `v` 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from broker.contract.problems import Table, shown, wrong

__all__ = ["ADDRESSES_MAX", "KEY_CHARACTERS_MAX", "OPERATIONS", "REQUEST_KEYS", "TOPICS", "Operation"]

REQUEST_KEYS: Final = ("v", "id", "op", "args", "key")
"""Keys of a request map. `id` comes back in the reply; `key` is the idempotency key of a changing request."""

KEY_CHARACTERS_MAX: Final = 200

ADDRESSES_MAX: Final = 10_000
"""Addresses of one request: a second's work; more of them are a file to import."""

_Path = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$", description="an absolute path")]
_ListName = Annotated[
    str,
    Field(pattern=r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]{0,98}[^\s\x00-\x1f\x7f])?$", description="the name of a list"),
]
_Column = Annotated[str, Field(min_length=1, max_length=200, description="the name of a column")]
_Address = Annotated[str, Field(min_length=3, max_length=320, description="an email address")]
_Addresses = Annotated[
    list[_Address], Field(min_length=1, max_length=ADDRESSES_MAX, description=f"1 to {ADDRESSES_MAX} addresses")
]
_Words = Annotated[str, Field(min_length=1, max_length=200, description="text of 1 to 200 characters")]


class Nothing(Table):
    """No arguments."""


class Stop(Table):
    """How to stop."""

    now: Annotated[bool, Field(description="true to drop what is in flight, else false")] = False


class CampaignContent(Table):
    """A campaign file and the files it names, by content: the engine reads none of them."""

    text: Annotated[str, Field(description="the content of the campaign file, TOML")]
    file: Annotated[str, Field(max_length=4096, description="how errors name the campaign file")] = "campaign.toml"
    attached: Annotated[
        dict[str, Annotated[str, Field(description="the content of a file")]],
        Field(description="content of the html and text files, by their path as the campaign file writes it"),
    ] = Field(default_factory=dict)
    recipients: Annotated[
        _Path | None, Field(description="the absolute path of the recipients file, in place of the one in the text")
    ] = None


class Send(CampaignContent):
    """A campaign to create and launch."""

    checked: Annotated[bool, Field(description="true to answer only when the checks have ended, else false")] = False


class CampaignReference(Table):
    """A campaign that exists."""

    campaign: Annotated[int | str, Field(union_mode="left_to_right", description="the id or the name of a campaign")]

    @field_validator("campaign", mode="before")
    @classmethod
    def _id_or_name(cls, given: Any) -> Any:
        if isinstance(given, bool) or not isinstance(given, int | str):
            raise wrong(f"must be the id or the name of a campaign: {shown(given)}")
        return given


class Launch(CampaignReference):
    """A draft to launch."""

    checked: Annotated[bool, Field(description="true to answer only when the checks have ended, else false")] = False


class Retry(CampaignReference):
    """Whom to try again."""

    states: Annotated[
        list[Annotated[Literal["failed", "uncertain"], Field(description="`failed` or `uncertain`")]],
        Field(min_length=1, max_length=2, description="whom to try again: `failed`, `uncertain` or both"),
    ] = Field(default=["failed"])


class CampaignList(Table):
    """Which campaigns."""

    limit: Annotated[int, Field(ge=1, le=100_000, description="a whole number from 1 to 100000")] = 1000


class AudienceImport(Table):
    """A file of recipients for a list."""

    list: _ListName
    path: _Path
    email_column: Annotated[
        _Column | None, Field(description="the name of the address column, if it is not `email` or the like")
    ] = None
    dry_run: Annotated[bool, Field(description="true to check everything and change nothing, else false")] = False


class ListReference(Table):
    """A list that exists."""

    list: _ListName


class AudienceUnsubscribe(Table):
    """Somebody who leaves a list."""

    list: _ListName
    address: _Address


class SuppressAdd(Table):
    """Addresses nobody may mail any more."""

    addresses: _Addresses
    reason: Annotated[
        _Words, Field(description="`manual`, `unsubscribe`, `bounce`, `complaint` or words of your own")
    ] = "manual"
    source: Annotated[_Words, Field(description="who says so")] = "operator"


class SuppressRemove(Table):
    """Addresses that may be mailed again."""

    addresses: _Addresses


class SuppressList(Table):
    """Which suppressed addresses."""

    prefix: Annotated[str, Field(max_length=320, description="how the addresses begin")] = ""
    limit: Annotated[int, Field(ge=1, le=10_000, description="a whole number from 1 to 10000")] = 100
    before: Annotated[int | None, Field(ge=0, description="go on after an earlier answer: its `next`")] = None


class SuppressImport(Table):
    """A file of addresses, one a line; the first column of a CSV file."""

    path: _Path
    reason: Annotated[_Words, Field(description="as in `suppress.add`")] = "manual"


class RelayCheck(Table):
    """Which relay; all of them without a name."""

    relay: Annotated[str | None, Field(min_length=1, max_length=64, description="the name of a relay")] = None


class JobReference(Table):
    """A job that was started."""

    job: Annotated[int, Field(ge=1, le=(1 << 63) - 1, description="the id of a job")]


TOPICS: Final = MappingProxyType(
    {
        "engine": "the engine as a whole: ready, stopping, settings read anew",
        "actor": "a process of the engine: started, ready, died, hung",
        "campaign": "`campaign.7.`: each change of state of campaign 7, its end with the account",
        "recipient": "people dealt with singly: suppressed, retried, found to crash a sender",
        "relay": "a relay: tripped, back again, stepped down",
        "job": "`job.12.`: `job.started`, `job.progress`, `job.done`, `job.failed`",
        "governor": "what the engine changed about itself, and why",
        "alert": "what an operator should look at",
    }
)
"""First words of the topics of events, and what is told under them."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the API. `reply` documents the result map of a request that went well."""

    args: type[Table]
    summary: str
    reply: str
    changes: bool = False
    """Takes an idempotency key: asked again under the same one, it answers the same and does nothing."""


_CAMPAIGN = "the campaign object"

OPERATIONS: Final = MappingProxyType(
    {
        "engine.status": Operation(
            Nothing,
            "Whether the engine is well, and if not, why",
            '`{"v", "engine": {..., "health"}, "reasons": [], ...}`',
        ),
        "engine.stats": Operation(
            Nothing, "Everything `ctl stats --json` shows", '`{"v", "time", "engine", "actors", "campaigns", ...}`'
        ),
        "engine.stop": Operation(
            Stop,
            "Stop the engine; it ends after the reply, when what is in flight has concluded",
            '`{"stopping": true, "processes": [[pid, start time in clock ticks], ...]}`',
            changes=True,
        ),
        "engine.config": Operation(
            Nothing, "The settings in force, without secrets", "the settings as a map; `source` is their file or null"
        ),
        "instance.reload": Operation(
            Nothing,
            "Read the settings file again; a file with a fault changes nothing",
            '`{"added": ["relay.second"], "changed": [], "removed": [], "restart_needed": ["ledger.sync_ms"]}`',
            changes=True,
        ),
        "campaign.create": Operation(
            CampaignContent,
            "Keep a campaign as a draft; a draft of the same name is replaced",
            '`{"campaign": 7}`',
            changes=True,
        ),
        "campaign.send": Operation(
            Send,
            "Create and launch a campaign; one of that name that is under way is followed instead",
            '`{"campaign": 7, "followed": false}`',
            changes=True,
        ),
        "campaign.list": Operation(
            CampaignList, "The campaigns, newest first", '`{"campaigns": [campaign object, ...]}`'
        ),
        "campaign.show": Operation(CampaignReference, "One campaign and its account", _CAMPAIGN),
        "campaign.check": Operation(
            CampaignContent,
            "Everything a launch would check, over the whole audience, without a launch",
            '`{"ok": false, "errors": [error map, ...], "warnings": ["...", ...], ...}`',
        ),
        "campaign.launch": Operation(
            Launch, "Launch a draft; it is prepared, checked, and then runs", _CAMPAIGN, changes=True
        ),
        "campaign.pause": Operation(
            CampaignReference, "Stop sending; answers when no further mail can leave", _CAMPAIGN, changes=True
        ),
        "campaign.resume": Operation(CampaignReference, "Go on with a paused campaign", _CAMPAIGN, changes=True),
        "campaign.cancel": Operation(
            CampaignReference,
            "End a campaign for good; answers when no further mail can leave",
            _CAMPAIGN,
            changes=True,
        ),
        "campaign.retry": Operation(
            Retry,
            "Try people again who failed, or of whom nobody knows; a finished campaign runs again",
            '`{"retried": {"failed": 3, "uncertain": 0}, "campaign": campaign object}`: how many are tried again',
            changes=True,
        ),
        "campaign.why": Operation(
            CampaignReference,
            "Why a campaign is not faster, or does not send: what holds it back, the most binding first",
            '`{"campaign": 7, "state": "running", "causes": [{"code", "message", "hint", "since", "until"}, ...]}`',
        ),
        "audience.import": Operation(
            AudienceImport,
            "Import a file of recipients into a list, as a job",
            '`{"job": 12}`; the job\'s result: `{"list", "rows", "rejected", "duplicates", "added", "updated", ...}`',
            changes=True,
        ),
        "audience.lists": Operation(Nothing, "The lists and how many people are in each", '`{"lists": [{...}, ...]}`'),
        "audience.show": Operation(ListReference, "One list", "the list as a map"),
        "audience.unsubscribe": Operation(
            AudienceUnsubscribe,
            "Take somebody off a list; an import cannot undo it",
            '`{"list": "customers", "address": "...", "changed": true}`',
            changes=True,
        ),
        "suppress.add": Operation(
            SuppressAdd,
            "Mail these addresses no more, within a second, running campaigns included",
            '`{"added": 1, "already": 0}`',
            changes=True,
        ),
        "suppress.remove": Operation(
            SuppressRemove, "Let these addresses be mailed again", '`{"removed": 1, "unknown": 0}`', changes=True
        ),
        "suppress.list": Operation(
            SuppressList,
            "Suppressed addresses, newest first",
            '`{"total": 2, "suppressions": [{"address", "kind", "reason", "source", "created"}, ...], "next": null}`',
        ),
        "suppress.import": Operation(
            SuppressImport,
            "Suppress all addresses of a file, as a job",
            '`{"job": 13}`; the job\'s result: `{"rows", "added", "already", "invalid", "first_invalid_line", ...}`',
            changes=True,
        ),
        "relay.list": Operation(
            Nothing,
            "The relays: settings and state",
            '`{"relays": [{"name", "host", "port", "tls", "state", "mode", "connections", "reason", ...}, ...]}`',
        ),
        "relay.check": Operation(
            RelayCheck,
            "Connect to relays, greet, secure, log in, and say what was found; no mail is sent",
            '`{"ok": true, "relays": [{"name", "ok", "host", "port", "banner", "tls", "certificate", "features", '
            '"login", "mode", "window", "round_trip_ms", "open_ms"} or "error"]}`',
        ),
        "job.show": Operation(
            JobReference,
            "How far a job is, or what came of it",
            '`{"job", "kind", "state", "progress", "result", "error"}`; state: queued, running, done, failed',
        ),
        "events.snapshot": Operation(
            Nothing,
            "The last number of each topic and, read after them, the state of everything",
            '`{"start": "...", "topics": {"campaign.7.": 41}, "stats": {...}}`',
        ),
    }
)
