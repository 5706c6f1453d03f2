"""What happened to relays, told: to the log, to whoever listens to events, and to the store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from broker.contract.errors import EcmError
from broker.contract.log import log
from broker.events import EventBus
from broker.relay_watch import News
from broker.store import relays as store_relays
from broker.store.relays import Learnt

__all__ = ["keep_learnt", "tell"]


class _Engine(Protocol):
    """What this module needs of the engine."""

    events: EventBus

    def store_call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]: ...


def tell(engine: _Engine, news: Iterable[News]) -> None:
    """Log what happened and publish it as `relay.tripped`, `relay.probing`, `relay.up`, `relay.stepped`."""
    for each in news:
        again_s = None if each.seconds is None else round(each.seconds, 1)
        match each.event:
            case "tripped":
                log.error("relay tripped", relay=each.name, reason=each.reason, again_s=again_s)
            case "probing":
                log.info("relay probed", relay=each.name)
            case "stepped":
                log.warning("relay stepped down", relay=each.name, reason=each.reason)
            case _:
                log.info("relay recovered", relay=each.name)
        data = {"relay": each.name, "reason": each.reason, "again_s": again_s}
        engine.events.publish("relay", f"relay.{each.event}", data=data)


async def keep_learnt(engine: _Engine, learnt: Sequence[Learnt]) -> None:
    """Keep what was learnt. A disk that does not take it costs only that it is learnt again after a restart."""
    try:
        await engine.store_call(store_relays.keep, learnt)
    except EcmError as error:
        log.warning("relays not kept", reason=error.message)
