"""Follows what takes time, by asking for it: a campaign until it ends, a job until it is done.

Decides what is worth telling; how it looks is the view's affair. Asks the engine rather than listening to its events,
so nothing can be missed: what it does not say is seen at the next look.
"""

import time
from collections.abc import Mapping
from typing import Any, Protocol

from broker.contract.errors import EcmError
from ctl.client import Client

__all__ = ["ENDED", "View", "end_of_job", "follow_campaign", "not_launched"]

ENDED = ("finished", "cancelled")
FIRST_LOOK_S = 0.02  # small campaigns are done in no time
LOOK_S = 0.25  # as often as the engine counts a campaign anew


class View(Protocol):
    """Where a person sees it."""

    def campaign(self, campaign: Mapping[str, Any]) -> None:
        """How a campaign stands now; told several times a second."""

    def job(self, progress: Mapping[str, Any]) -> None:
        """How far a job is."""

    def tell(self, text: str) -> None:
        """Something happened that a person should know."""


class _Pace:
    """Looks that become rarer; a deadline."""

    def __init__(self, within_s: float | None) -> None:
        self._next_s = FIRST_LOOK_S
        self._deadline = None if within_s is None else time.monotonic() + within_s

    def wait(self) -> bool:
        """Wait until the next look; False if the time is over."""
        step = self._next_s
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                return False
            step = min(step, left)
        time.sleep(step)
        self._next_s = min(self._next_s * 1.5, LOOK_S)
        return True


def follow_campaign(
    client: Client, number: int, view: View, *, checked_only: bool = False, within_s: float | None = None
) -> dict[str, Any]:
    """The campaign object once the campaign has ended, or with `checked_only` once its checks have passed.

    A pause is told and waited out. Raises EcmError: what sent the campaign back to draft; timed_out.
    """
    pace = _Pace(within_s)
    told: tuple[str, str] | None = None
    while True:
        campaign = client.request("campaign.show", {"campaign": number})
        state = campaign["state"]
        if state == "draft":
            raise not_launched(campaign)
        if state in ENDED or (checked_only and state != "preparing"):
            view.campaign(campaign)
            return campaign
        halted = _halted(campaign)
        if halted != told:
            view.tell(_change(campaign, halted))
            told = halted
        view.campaign(campaign)
        if not pace.wait():
            raise EcmError(
                "timed_out",
                f"campaign `{campaign['name']}` is still {state}",
                hint=f"it goes on; `ctl campaign wait {campaign['name']}` waits for its end",
            )


def not_launched(campaign: Mapping[str, Any]) -> EcmError:
    """Why a campaign is a draft: what its checks found, or nothing."""
    if campaign["reason"]:
        return EcmError.from_map(campaign["reason"])
    return EcmError(
        "wrong_state",
        f"campaign `{campaign['name']}` is a draft, there is nothing to wait for",
        field="campaign",
        hint=f"`ctl campaign launch {campaign['name']}` launches it",
    )


def _halted(campaign: Mapping[str, Any]) -> tuple[str, str] | None:
    """(state, why) of a campaign that stands still; None if it goes on."""
    if campaign["state"] not in ("paused", "waiting"):
        return None
    return campaign["state"], (campaign["reason"] or {}).get("message", "")


def _change(campaign: Mapping[str, Any], halted: tuple[str, str] | None) -> str:
    name = campaign["name"]
    if halted is None:
        return f"campaign {name} goes on"
    state, why = halted
    hint = (campaign["reason"] or {}).get("hint")
    verb = "is paused" if state == "paused" else "waits"
    return f"campaign {name} {verb}: {why}" + (f" ({hint})" if hint else "")


def end_of_job(client: Client, number: int, view: View) -> dict[str, Any]:
    """The result of a job once it is done. Raises the EcmError it failed with."""
    pace = _Pace(None)
    while True:
        job = client.request("job.show", {"job": number})
        if job["state"] == "failed":
            raise EcmError.from_map(job["error"])
        if job["state"] == "done":
            result: dict[str, Any] = job["result"]
            return result
        if job["progress"]:
            view.job(job["progress"])
        pace.wait()
