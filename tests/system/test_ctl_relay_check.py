"""`ctl relay check` against a real Postfix: what it offers as a table, and what is wrong with the relays that fail."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.engine import StartEngine
    from tests.fixtures.postfix import RunningPostfix

pytest_plugins = ["tests.fixtures.postfix", "tests.fixtures.engine"]


def test_every_relay_is_shown_and_those_that_fail_are_told_with_a_hint(
    engine: StartEngine, postfix: RunningPostfix
) -> None:
    """One good relay among bad ones: its table, theirs, a line and a hint for each failure, and exit status 1."""
    others = f"""
[relay.mild]
host = "{postfix.host}"
port = {postfix.port}
tls = "opportunistic"
[relay.stranger]
host = "{postfix.host}"
port = {postfix.port}
tls = "required"
[relay.nobody]
host = "{postfix.host}"
port = 1
tls = "none"
"""
    running = engine(
        relay=postfix.port, settings=others, tls='"required"', ca_file=f'"{postfix.ca_file}"',
        username=f'"{postfix.username}"', password_file='"pw"', start=False,
    )  # fmt: skip
    (running.directory / "pw").write_text(f"{postfix.password}\n")
    running.start()
    found = running.ctl("relay", "check")
    tables = {block.splitlines()[0]: block for block in found.stdout.split("\n\n")}
    good, mild = tables["relay  default"], tables["relay  mild"]
    expected = rf"""relay  default
server  127.0.0.1:{postfix.port}
usable  yes
banner  peer\.example\.com ESMTP Postfix.*
tls  TLSv1\.3 TLS_AES_256_GCM_SHA384
certificate  verified, valid until \d{{4}}-\d\d-\d\d
extensions  PIPELINING, CHUNKING, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES, SIZE 10\.2 MB, AUTH PLAIN LOGIN CRAM-MD5
login  PLAIN
mode  bdat
window  16
round trip  \d+\.\d\d ms
open  \d+\.\d ms"""
    assert re.fullmatch(expected, good), good
    assert f"not asked for (the certificate of 127.0.0.1:{postfix.port} is not valid: self-signed certificate)" in mild
    assert "usable  no" in tables["relay  stranger"]
    assert "usable  no" in tables["relay  nobody"]
    assert found.status == 1
    assert found.stderr.splitlines() == [
        f"error: relay `stranger`: the certificate of 127.0.0.1:{postfix.port} is not valid: self-signed certificate",
        "hint: name its authority with `ca_file`, or the host as the certificate does",
        "error: relay `nobody`: cannot connect to 127.0.0.1:1: Connection refused",
        "hint: is it running, are host and port in ecm.toml right, and does a firewall stand between?",
    ]
    assert "secret" not in found.stdout + found.stderr

    alone = running.ctl("relay", "check", "default", "--json").ok().json()
    assert [one["name"] for one in alone["relays"]] == ["default"]
    told = running.ctl("relay", "check", "--json")
    assert told.status == 1
    assert [one["ok"] for one in told.json()["relays"]] == [True, True, False, False]
    assert told.json()["relays"][0]["certificate"]["verified"]
