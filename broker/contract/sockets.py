"""Addresses of the engine's sockets.

May import no asyncio (ctl's quick path loads this module); makes no socket.
"""

from __future__ import annotations

import os
from pathlib import Path

from broker.contract.errors import EcmError
from broker.contract.paths import StateDir

__all__ = ["PATH_BYTES_MAX", "START_ID_DIGITS", "check_lengths", "ipc"]

PATH_BYTES_MAX = 107  # sun_path of unix(7) is 108 bytes, the last one zero
START_ID_DIGITS = 12


def ipc(path: Path) -> str:
    """The ZeroMQ address of a socket file."""
    return f"ipc://{path}"


def check_lengths(state: StateDir) -> None:
    """Raise EcmError `path_too_long` if a socket of this state directory could not be bound.

    Checked before anything is made: ZeroMQ's own error comes late and does not name the directory.
    """
    longest = max(
        len(os.fsencode(path)) for path in (state.control, state.events, state.actors_socket("0" * START_ID_DIGITS))
    )
    if longest <= PATH_BYTES_MAX:
        return
    root = len(os.fsencode(state.root))
    raise EcmError(
        "path_too_long",
        f"socket paths would have {longest} bytes, the system allows {PATH_BYTES_MAX}: {state.root}",
        count=longest,
        hint=f"choose a state directory of at most {PATH_BYTES_MAX - longest + root} bytes (this one has {root}) "
        "with --state",
    )
