"""What the handlers ask of the engine, stated as an interface: the whole width of the seam between the two.

A handler translates a request into these calls and their answers into a reply. Tests put the same parts behind it
without processes; a second way in (HTTP, later) would stand on it as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from broker.contract.campaign import CampaignSpec
from broker.contract.paths import StateDir
from broker.contract.settings import Settings
from broker.events import EventBus
from broker.jobs import Jobs
from broker.suppression import Suppression

__all__ = ["Campaigns", "Engine", "Handler", "Relays"]


class Campaigns(Protocol):
    """What may be done to campaigns. Every method raises EcmError where it cannot."""

    async def create(self, spec: CampaignSpec) -> int:
        """Keep a draft; one of that name is replaced."""

    async def launch(self, number: int) -> None:
        """Begin to prepare a draft."""

    async def checked(self, number: int) -> None:
        """Wait for the end of preparing; raises what was wrong."""

    async def pause(self, number: int) -> dict[str, Any]:
        """Answers the account when no further mail can leave."""

    async def resume(self, number: int) -> dict[str, Any]:
        """Answers the account."""

    async def cancel(self, number: int) -> dict[str, Any]:
        """Answers the account when no further mail can leave."""

    async def retry(self, number: int, states: Sequence[str]) -> dict[str, Any]:
        """{"retried", "campaign"}: how many people in these states are tried again, decided durably; the account."""

    async def why(self, number: int) -> dict[str, Any]:
        """{"campaign", "state", "causes"}."""

    async def account(self, number: int) -> dict[str, Any]:
        """The campaign object."""

    async def listing(self, *, limit: int = 1000) -> list[dict[str, Any]]:
        """Campaign objects, newest first."""

    async def resolve(self, campaign: str | int) -> int:
        """The id behind an id or a name."""

    async def check(self, spec: CampaignSpec) -> dict[str, Any]:
        """{"ok", "errors", "warnings", counts}."""


class Relays(Protocol):
    """What may be asked about relays."""

    async def check(self, name: str) -> dict[str, Any]:
        """{"name", "ok", ...}; raises EcmError unknown_relay."""


class Reload(Protocol):
    """The settings file read again."""

    async def run(self) -> dict[str, Any]:
        """{"added", "changed", "removed", "restart_needed"}; raises what is wrong with the file."""


class Engine(Protocol):
    """The engine, as handlers see it."""

    @property
    def settings(self) -> Settings:
        """In force now."""

    @property
    def state(self) -> StateDir:
        """Paths."""

    @property
    def stopping(self) -> bool:
        """It takes no changes any more."""

    @property
    def campaigns(self) -> Campaigns:
        """Campaigns by what may be done to them."""

    @property
    def relays(self) -> Relays:
        """Relays by what may be asked about them."""

    @property
    def reload(self) -> Reload:
        """Settings read again."""

    @property
    def jobs(self) -> Jobs:
        """Long work."""

    @property
    def events(self) -> EventBus:
        """What happens."""

    @property
    def suppression(self) -> Suppression:
        """Who must not be mailed."""

    def store_call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Run `function(store, ...)` in the store thread."""

    def now_s(self) -> float:
        """Engine time in seconds."""

    def request_stop(self, *, now: bool) -> None:
        """Begin to stop."""

    async def stats_map(self) -> dict[str, Any]:
        """The document of `ctl stats --json`."""

    def status_map(self) -> dict[str, Any]:
        """The document of `ctl status --json`."""


Handler = Callable[[Engine, Any], Awaitable[dict[str, Any]]]
"""(engine, the operation's argument model) -> result; raises EcmError."""
