"""Speaking with a relay to see what it offers: in a process of its own, since a server may hang in any way.

Each step has its own deadline there, out of the relay's `timeouts`. All together are waited for here, so that a relay
which is slow, and was given the time for it, is not called unreachable.
"""

import asyncio
import json
import sys
from typing import Any

from broker.contract.errors import EcmError
from broker.contract.relay import Relay

__all__ = ["check", "patience_s"]

SPARE_S = 20.0  # for the start of the process, and what it measures beside: it leaves off by itself before


def patience_s(relay: Relay) -> float:
    """Seconds until a session must stand or have failed: connect, greeting, EHLO, TLS, EHLO anew, AUTH."""
    allowed = relay.timeouts_s
    encrypts = 0.0 if relay.tls == "none" else allowed["connect"] + allowed["command"]
    login = allowed["command"] if relay.username else 0.0
    return allowed["connect"] + allowed["greeting"] + allowed["command"] + encrypts + login


async def check(relay: Relay) -> dict[str, Any]:
    """What a relay offers: connect, EHLO, STARTTLS, AUTH. {"name", "ok", ...} or {"name", "ok", "error"}."""
    name = relay.name
    try:
        return {"name": name, **await _check(relay)}
    except TimeoutError:
        text = f"relay `{name}`: no session with {relay.host}:{relay.port} in the {patience_s(relay):.0f} s it may take"
        hint = "its `timeouts` in ecm.toml allow so much for connecting, greeting, EHLO, TLS and login together"
        error = EcmError("relay_unreachable", text, hint=hint)
    except (OSError, ValueError) as fault:  # no process to be had, or one that died without a word
        error = EcmError("internal", f"relay `{name}` could not be checked: {fault}")
    return {"ok": False, "name": name, "host": relay.host, "port": relay.port, "error": error.to_map()}


async def _check(relay: Relay) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "actors.smtp.check",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        settings = json.dumps(relay.to_map()).encode()
        out, _ = await asyncio.wait_for(process.communicate(settings), patience_s(relay) + SPARE_S)
        result: dict[str, Any] = json.loads(out)
        return result
    finally:
        if process.returncode is None:  # too late, or nobody waits for it any more
            process.kill()
            await process.wait()
