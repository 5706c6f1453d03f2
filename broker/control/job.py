"""Requests about long work."""

from __future__ import annotations

from typing import Any, Final

from broker.contract.messages import JobReference
from broker.control.seam import Engine, Handler

__all__ = ["HANDLERS"]


async def job_show(engine: Engine, args: JobReference) -> dict[str, Any]:
    """How far it is, or what came of it."""
    return await engine.jobs.show(args.job)


HANDLERS: Final[dict[str, Handler]] = {"job.show": job_show}
