"""Speaking with a relay to see what it offers: in a process of its own, since a server may hang in any way."""

import asyncio
import json
import sys
from typing import Any

from broker.contract.errors import EcmError
from broker.contract.relay import Relay

__all__ = ["check"]

CHECK_S_MAX = 20.0  # connect, greeting, EHLO, TLS and AUTH of a slow relay


async def check(relay: Relay) -> dict[str, Any]:
    """What a relay offers: connect, EHLO, STARTTLS, AUTH. {"name", "ok", ...} or {"name", "ok", "error"}."""
    name = relay.name
    try:
        return {"name": name, **await _check(relay)}
    except TimeoutError:
        text = f"relay `{name}` ({relay.host}:{relay.port}) gave no answer in {CHECK_S_MAX:.0f} s"
        error = EcmError("relay_unreachable", text)
    except (OSError, ValueError) as fault:  # no process to be had, or one that died without a word
        error = EcmError("internal", f"relay `{name}` could not be checked: {fault}")
    return {"ok": False, "name": name, "error": error.to_map()}


async def _check(relay: Relay) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "actors.smtp.check",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        settings = json.dumps(relay.to_map()).encode()
        out, _ = await asyncio.wait_for(process.communicate(settings), CHECK_S_MAX)
        result: dict[str, Any] = json.loads(out)
        return result
    finally:
        if process.returncode is None:  # too late, or nobody waits for it any more
            process.kill()
