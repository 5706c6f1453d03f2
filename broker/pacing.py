"""Carries the rates' decisions to the senders: reads what leases want and did, publishes what the law grants.

The law is `rates` and `rate_windows`; shared memory is `shm/live/grants`; this joins the two and knows neither's
inside. It also chooses which relay of a pool a lease uses, since a lease falls under that relay's windows.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from broker.contract.limits import Rate
from broker.contract.log import log
from broker.contract.paths import StateDir
from broker.contract.settings import Settings
from broker.contract.timefmt import rfc3339
from broker.rates import Rates
from broker.relays import Relays
from broker.running import Lease, Running
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
    ) -> None:
        self._state = state
        self._instance = instance
        self._boot_id = boot_id
        self._settings = settings
        self._grants = grants
        self._clock = clock
        self._work = work
        self._rates = Rates()
        self._relays = list(settings.relays)
        self._known: set[str] = set()
        self._leases: dict[int, Lease] = {}
        self._reserving = False
        self._reserve_from = 0.0  # monotonic

    async def start(self) -> None:
        """Take up the windows of relays that have limits."""
        for name, relay in self._settings.relays.items():
            if relay.rate.limited:
                await self._add(f"relay-{name}", relay.rate)

    async def adopt(self, campaign: Running, rate: Rate) -> None:
        """Take up a campaign's windows: full at its launch, and where they were after a restart."""
        await self._add(f"campaign-{campaign.id}", rate)

    async def _add(self, owner: str, rate: Rate) -> None:
        def open_file() -> WindowFile:
            return WindowFile.open(
                self._state.windows(owner), instance=self._instance, owner=owner, boot_id=self._boot_id,
                mono_ns=time.monotonic_ns(), wall_ns=self._clock.now_ns(),
            )  # fmt: skip

        file = await self._work(open_file) if rate.limited else WindowFile.memory(time.monotonic_ns())
        self._known.add(owner)
        self._rates.add_owner(owner, rate, file, time.monotonic_ns())
        if self.reserves_due:
            await self.keep_reserves()

    def forget(self, campaign: Running) -> None:
        """A campaign has ended: its windows wait on the disk for a retry; a cancelled one is never retried."""
        owner = f"campaign-{campaign.id}"
        if self._rates.has_owner(owner):
            self._rates.drop_owner(owner, time.monotonic_ns()).close()
            if campaign.cancelling:
                self._state.windows(owner).unlink(missing_ok=True)

    def _owners(self, campaign: Running, relay: int) -> list[str]:
        name = f"relay-{self._relays[relay]}"
        # The campaign's own windows must be there: to leave out what is missing would be to send without limits.
        return [f"campaign-{campaign.id}", *([name] if self._rates.has_owner(name) else [])]

    def gated(self, campaign: Running, relay: int) -> bool:
        """Whether a lease of the campaign through this relay must spend grants."""
        return self._rates.needs_grants(self._owners(campaign, relay))

    def choose_relay(self, campaign: Running, row: int, relays: Relays) -> int:
        """The relay that a new lease of the sender in `row` uses.

        Of those that it may open connections to and that work, the one furthest below its weight's share of rows.
        """
        mine = [(i, w) for i, w in campaign.relays if i in relays.open_to(row)]
        able = [(i, w) for i, w in mine if not relays.down([i])] or mine
        return min(able, key=lambda item: (campaign.given.get(item[0], 0) / item[1], item[0]))[0]

    def opened(self, lease: Lease) -> None:
        """A lease begins; called before its offer is published."""
        self._grants.open(lease.row, lease.slot, lease.number)
        self._rates.open_lease(lease.number, self._owners(lease.campaign, lease.relay), time.monotonic_ns())
        self._leases[lease.number] = lease

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
            if not lease.gated:
                continue
            tenant, spent, returned, wanted, _ = self._grants.read(lease.row, lease.slot)
            if tenant == lease.number:
                spent_ns = self._grants.spent_ns(lease.row, lease.slot)
                self._rates.observe(lease.number, spent, returned, time.monotonic_ns(), spent_ns)
                self._rates.want(lease.number, wanted)
        if not self._rates.active:
            return
        for grant in self._rates.tick(time.monotonic_ns()):
            lease = self._leases[grant.lease]
            slice_ = (grant.n, grant.first_ns, grant.step_ns, grant.gap_ns, lease.relay)
            if not self._grants.push(lease.row, lease.slot, *slice_):
                self._rates.withdraw(grant.lease, grant.n, time.monotonic_ns())

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
