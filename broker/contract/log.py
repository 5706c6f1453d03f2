"""The engine's log: one line an event, logfmt, to stderr, which `ctl start` points at STATE/log/engine.log."""

import sys
from typing import Any

import structlog

__all__ = ["open_log"]

_INFO = 20


def open_log(actor: str) -> Any:
    """Configure the log of this process; every line names `actor`."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event", "actor"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    structlog.contextvars.bind_contextvars(actor=actor)
    return structlog.get_logger()
