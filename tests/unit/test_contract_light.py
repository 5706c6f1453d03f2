"""What the quick path of the command line loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("pydantic", "numpy", "asyncio", "sqlalchemy", "psutil", "zmq", "dataclasses")


@pytest.mark.parametrize("module", ["paths", "errors", "codec", "sockets", "timefmt", "place"])
def test_quick_modules_load_nothing_heavy(module: str) -> None:
    """Each module of the quick path loads neither pydantic, numpy, asyncio, SQLAlchemy nor psutil."""
    code = f"import sys, broker.contract.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(HEAVY) & set(loaded)
