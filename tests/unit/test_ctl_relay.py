"""How `ctl relay` writes servers."""

from __future__ import annotations

import pytest

from broker.contract.place import place
from ctl.commands.relay import _fails


@pytest.mark.parametrize(
    ("host", "written"),
    [("mx.example.com", "mx.example.com:25"), ("192.0.2.1", "192.0.2.1:25"), ("2001:db8::1", "[2001:db8::1]:25")],
)
def test_a_server_is_written_so_that_its_port_can_be_told(host: str, written: str) -> None:
    """An address of IPv6 stands in brackets, everything else does not; so in the table of a relay that fails."""
    assert place(host, 25) == written
    assert _fails({"host": host, "port": 25, "error": {"message": "no"}})[0] == ("server", written)
