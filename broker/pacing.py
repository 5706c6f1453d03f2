"""Carries the rates' decisions to the senders: reads what leases want and did, publishes what the law grants.

The law is `rates` and `rate_windows`; shared memory is `shm/live/grants`; this joins the two and knows neither's
inside. A lease on a pool gets slices for the relay whose turn it is, and falls under that relay's windows with each.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from broker.contract.limits import Rate
from broker.contract.log import log
from broker.contract.paths import StateDir
from broker.contract.settings import Settings
from broker.contract.timefmt import rfc3339
from broker.rates import Grant, Rates, Route
from broker.relays import MANY
from broker.running import Lease, Running
from shm.files.durable import FileFault
from shm.files.windows import WindowFile
from shm.live.clock import EngineClock
from shm.live.grants import GrantTable

__all__ = ["Pacing"]

RESERVE_AGAIN_S = 1.0  # between tries to keep windows on a disk that fails


class Pacing:
    """The rate windows of all campaigns and relays, and the grants to all leases."""

    def __init__(
        self,
        state: StateDir,
        instance: str,
        boot_id: str,
        settings: Settings,
        grants: GrantTable,
        clock: EngineClock,
        work: Callable[[Callable[[], Any]], Awaitable[Any]],
        may_send: Callable[[int, int], int] = lambda _row, _relay: MANY,
    ) -> None:
        self._state = state
        self._instance = instance
        self._boot_id = boot_id
        self._settings = settings
        self._grants = grants
        self._clock = clock
        self._work = work
        self._may_send = may_send  # (sender's row, relay) -> tokens that a pool's lease may be granted now
        self._rates = Rates(self._tokens)
        self._relays = list(settings.relays)
        self._known: set[str] = set()
        self._leases: dict[int, Lease] = {}
        self._reserving = False
        self._reserve_from = 0.0  # monotonic

    async def start(self) -> None:
        """Take up the windows of relays."""
        for name, relay in self._settings.relays.items():
            await self._add(f"relay-{name}", relay.rate)

    async def files_for(self, settings: Settings) -> dict[str, WindowFile]:
        """Window files of relays that get limits and had none, opened: the part of a reload that a disk may refuse.

        Raises OSError, FileFault; then nothing is left open.
        """
        files: dict[str, WindowFile] = {}
        try:
            for name, relay in settings.relays.items():
                owner = f"relay-{name}"
                if relay.rate.limited and not (self._rates.has_owner(owner) and self._rates.lasting(owner)):
                    files[owner] = await self._work(partial(self._open, owner))
        except (OSError, FileFault):
            for file in files.values():
                file.close()
            raise
        return files

    def apply(self, settings: Settings, names: list[str], files: dict[str, WindowFile]) -> None:
        """Take over relays of other settings; `names` by index. What their windows have counted stays counted."""
        now = time.monotonic_ns()
        self._settings, self._relays = settings, names
        for name, relay in settings.relays.items():
            owner = f"relay-{name}"
            if not self._rates.has_owner(owner):
                self._known.add(owner)
                self._rates.add_owner(owner, relay.rate, files.get(owner) or WindowFile.memory(now), now)
                continue
            if owner in files:
                self._rates.rehouse(owner, files[owner])
            self._rates.set_rate(owner, relay.rate, now)

    async def adopt(self, campaign: Running, rate: Rate) -> None:
        """Take up a campaign's windows: full at its launch, and where they were after a restart."""
        await self._add(f"campaign-{campaign.id}", rate)

    def _open(self, owner: str) -> WindowFile:
        return WindowFile.open(
            self._state.windows(owner), instance=self._instance, owner=owner, boot_id=self._boot_id,
            mono_ns=time.monotonic_ns(), wall_ns=self._clock.now_ns(),
        )  # fmt: skip

    async def _add(self, owner: str, rate: Rate) -> None:
        now = time.monotonic_ns()
        file = await self._work(partial(self._open, owner)) if rate.limited else WindowFile.memory(now)
        self._known.add(owner)
        self._rates.add_owner(owner, rate, file, time.monotonic_ns())
        if self.reserves_due:
            await self.keep_reserves()

    async def forget(self, campaign: Running) -> None:
        """A campaign has ended: its windows wait on the disk for a retry; a cancelled one is never retried."""
        owner = f"campaign-{campaign.id}"
        if self._rates.has_owner(owner):
            file = self._rates.drop_owner(owner, time.monotonic_ns())
            await self._work(file.close)  # before anybody opens it anew: one thread does both
            if campaign.cancelling:
                await self._work(partial(self._state.windows(owner).unlink, missing_ok=True))

    def _owners(self, campaign: Running, relay: int) -> list[str]:
        # The campaign's own windows must be there: to leave out what is missing would be to send without limits.
        return [f"campaign-{campaign.id}", f"relay-{self._relays[relay]}"]

    def gated(self, campaign: Running, relays: Sequence[int]) -> bool:
        """Whether a lease of the campaign through these relays must spend grants: a limit, or a choice of relays."""
        limited = any(self._rates.needs_grants(self._owners(campaign, relay)) for relay in relays)
        return limited or len(relays) > 1

    def opened(self, lease: Lease) -> None:
        """A lease begins; called before its offer is published."""
        self._grants.open(lease.row, lease.slot, lease.number)
        owners = self._owners(lease.campaign, lease.relay)
        routes = [Route(relay, weight, f"relay-{self._relays[relay]}") for relay, weight in lease.routes]
        self._rates.open_lease(lease.number, owners[:1] if routes else owners, time.monotonic_ns(), routes)
        self._leases[lease.number] = lease

    def _tokens(self, number: int, relay: int) -> int:
        return self._may_send(self._leases[number].row, relay)

    def closed(self, lease: Lease, *, dead: bool) -> None:
        """A lease ended. What a dead holder did not spend counts as spent; what was given back does not."""
        del self._leases[lease.number]
        tenant, spent, returned, _, _ = self._grants.read(lease.row, lease.slot)
        if tenant != lease.number:
            spent = returned = 0  # it never took the lease up
        if not dead:
            returned = self._rates.granted(lease.number) - spent
        self._rates.close_lease(lease.number, spent, returned)

    @property
    def wanted(self) -> bool:
        """Whether grants are being given, so that the next tick matters."""
        return self._rates.active or any(lease.gated for lease in self._leases.values())

    def tick(self) -> None:
        """One round: hear what became of tokens, grant new ones, publish them."""
        for lease in self._leases.values():
            if not lease.gated and not self._rates.owes(lease.number):
                continue
            tenant, spent, returned, wanted, _ = self._grants.read(lease.row, lease.slot)
            if tenant == lease.number:
                spent_ns = self._grants.spent_ns(lease.row, lease.slot)
                self._rates.observe(lease.number, spent, returned, time.monotonic_ns(), spent_ns)
                self._rates.want(lease.number, wanted if lease.gated else 0)
        if not self._rates.active:
            return
        full: dict[int, list[Grant]] = {}  # by lease, what found no room in its ring
        for grant in self._rates.tick(time.monotonic_ns()):
            lease = self._leases[grant.lease]
            relay = lease.relay if grant.relay < 0 else grant.relay
            slice_ = (grant.n, grant.first_ns, grant.step_ns, grant.gap_ns, relay)
            # After one that found no room none may go in, even if there is some by now: slices keep their order.
            if grant.lease in full or not self._grants.push(lease.row, lease.slot, *slice_):
                full.setdefault(grant.lease, []).append(grant)
        for number, grants in full.items():
            for grant in reversed(grants):
                self._rates.withdraw(number, grant.n, time.monotonic_ns())

    @property
    def reserves_due(self) -> bool:
        """Whether a long window needs its next chunk, and nobody is making it durable."""
        return not self._reserving and time.monotonic() >= self._reserve_from and bool(self._rates.due_reserves())

    async def keep_reserves(self) -> None:
        """Make the next chunk of long windows durable, before it is needed. Ask `reserves_due` first: one at a time."""
        assert not self._reserving, "a file is reserved by one task at a time"
        self._reserving = True
        try:
            for file in self._rates.due_reserves():
                file.reserve(time.monotonic_ns(), self._clock.now_ns())
                await self._work(file.sync)
        except OSError as error:  # grants end with the reserve that is on the disk; the next round tries again
            log.error("windows not kept", reason=error.strerror, effect="limits of an hour or more stop sending")
            self._reserve_from = time.monotonic() + RESERVE_AGAIN_S
        finally:
            self._reserving = False

    def binding(self, campaign: Running) -> dict[str, Any] | None:
        """{"name", "value", "until"} of the limit that binds a campaign now, its own or a relay's, or None."""
        now = time.monotonic_ns()
        names = [self._relays[index] for index, _ in campaign.relays]
        owners = [(f"campaign-{campaign.id}", ""), *((f"relay-{name}", f"relay.{name}.") for name in names)]
        for owner, prefix in owners:
            bound = self._rates.binding(owner, now)
            if bound is not None:
                until_s = (self._clock.now_ns() + bound["until_ns"] - now) / 1e9
                return {"name": prefix + bound["name"], "value": bound["value"], "until": rfc3339(until_s)}
        return None

    def close(self) -> None:
        """Let go of all window files; they stay where they are."""
        now = time.monotonic_ns()
        for number in list(self._leases):
            self._rates.close_lease(number, 0, 0)
        for owner in self._known:
            if self._rates.has_owner(owner):
                self._rates.drop_owner(owner, now).close()
