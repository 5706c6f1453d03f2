"""How long the broker waits for a relay that is tried out, and what it says then (broker/relay_check.py)."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from broker import relay_check
from broker.contract.relay import Relay
from broker.contract.settings import Settings


def relay(port: int, **more: Any) -> Relay:
    """A relay on this machine, by its settings."""
    return Settings.model_validate({"relay": {"slow": {"host": "127.0.0.1", "port": port, **more}}}).relays["slow"]


def test_it_waits_as_long_as_the_relays_own_timeouts_add_up_to() -> None:
    """A relay that may take five minutes for its greeting is given them, also by the check before a launch."""
    slow = {"connect": 10, "greeting": 300, "command": 30}
    assert relay_check.patience_s(relay(25, tls="none", timeouts=slow)) == 340, "connect, greeting, EHLO"
    assert relay_check.patience_s(relay(25, tls="required", timeouts=slow)) == 380, "TLS, and EHLO anew"


def test_one_that_outlasts_all_its_time_is_named_with_its_place_and_what_was_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It listens and says nothing; the hint names what to change, not the command that has just said it."""
    monkeypatch.setattr(relay_check, "SPARE_S", -340 + 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        mute = relay(port, tls="none", timeouts={"connect": 10, "greeting": 300, "command": 30})
        found = asyncio.run(relay_check.check(mute))
    assert (found["ok"], found["name"], found["host"], found["port"]) == (False, "slow", "127.0.0.1", port)
    assert found["error"]["message"] == f"relay `slow`: no session with 127.0.0.1:{port} in the 340 s it may take"
    assert "`timeouts`" in found["error"]["hint"]
    assert "relay check" not in found["error"]["hint"]
