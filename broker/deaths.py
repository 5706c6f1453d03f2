"""What is known of the end of an actor: its own last words, or how its process ended. Reads only, decides nothing."""

import time
from typing import Final

from broker.supervisor import Slot
from shm.live.faults import FaultTable

__all__ = ["last_words"]

CRASHED: Final = "crashed: "  # how `actors/runtime.py` begins the fault of an exception that nobody caught


def last_words(faults: FaultTable, slot: Slot, now_ns: int) -> str:
    """One line on how the actor of `slot` died: the exception it told of in that life, or its exit status or signal.

    now_ns   engine time
    """
    born_ns = now_ns - int((time.monotonic() - slot.started) * 1e9)
    told = [
        fault.text.removeprefix(CRASHED)
        for fault in faults.read()  # the latest first
        if fault.row == slot.row and fault.last_ns >= born_ns and fault.text.startswith(CRASHED)
    ]
    return told[0] if told else slot.how
