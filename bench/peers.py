"""The other side of a benchmark: servers that take mail, and the Postfix project's generator as the yardstick.

Each server is a context: it listens when the context is entered, on a free port, and is gone when it is left. What is
missing on the machine is one line, with the line that mends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.fixtures.peers import free_ports
from tests.fixtures.postfix import RunningPostfix
from tests.fixtures.wire import End

__all__ = [
    "OurSink", "Postfix", "Source", "certificate", "end_on_term", "need", "our_sink", "place", "postfix",
    "smtp_sink", "source",
]  # fmt: skip

PACKAGES = {
    "smtp-sink": "apt-get install --no-install-recommends postfix",
    "smtp-source": "apt-get install --no-install-recommends postfix",
    "postfix": "apt-get install --no-install-recommends postfix sasl2-bin libsasl2-modules",
    "saslpasswd2": "apt-get install --no-install-recommends sasl2-bin libsasl2-modules libsasl2-modules-db",
    "openssl": "apt-get install openssl",
    "ip": "apt-get install iproute2",
    "taskset": "apt-get install util-linux",
    "node": "apt-get install nodejs npm",
    "npm": "apt-get install nodejs npm",
}
SOURCE_HEADER_BYTES = 128  # what smtp-source writes before the bytes that -l counts: From, To, Date, Message-Id
SESSIONS_MOST = 2000
MEMORY = Path("/dev/shm")


def need(*programs: str, root: bool = False) -> None:
    """End with one clear line if a program is missing, or if we are not root where that is needed."""
    for program in programs:
        if shutil.which(program) is None:
            raise SystemExit(f"error: {program} is missing\nhint: {PACKAGES[program]}")
    if root and os.geteuid() != 0:
        raise SystemExit("error: this benchmark needs root: it makes network namespaces or starts a private Postfix")


@contextlib.contextmanager
def place(parent: Path | None = None) -> Iterator[Path]:
    """A temporary directory that other users may pass through, in /tmp for the sake of a short path.

    From now on SIGTERM is an exception here: it stops whatever the benchmark has started.
    """
    end_on_term()
    path = Path(tempfile.mkdtemp(prefix="ecm-bench-", dir=parent or "/tmp"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def end_on_term() -> None:
    """Let SIGTERM be an exception, so that what was started is stopped."""

    def terminated(_number: int, _frame: object) -> None:
        raise SystemExit("error: terminated")

    signal.signal(signal.SIGTERM, terminated)


@contextlib.contextmanager
def smtp_sink(host: str = "127.0.0.1", *, prefix: Sequence[str] = ()) -> Iterator[int]:
    """The Postfix project's smtp-sink; its port. It announces PIPELINING, and neither CHUNKING nor STARTTLS."""
    need("smtp-sink")
    (port,) = free_ports(1)
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [*prefix, "smtp-sink", *user, "-m", str(SESSIONS_MOST), f"{host}:{port}", "1024"], stderr=subprocess.DEVNULL
    )
    try:
        _until_listening(process, host, port, prefix)
        yield port
    finally:
        process.terminate()
        process.wait()


def _until_listening(process: subprocess.Popen[bytes], host: str, port: int, prefix: Sequence[str]) -> None:
    """Connect until somebody answers, from where the server is."""
    look = f"import socket; socket.create_connection(({host!r}, {port}), 1).close()"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        if prefix:
            if subprocess.run([*prefix, sys.executable, "-c", look], check=False, capture_output=True).returncode == 0:
                return
        else:
            with contextlib.suppress(OSError):
                socket.create_connection((host, port), 1).close()
                return
        time.sleep(0.02)
    raise SystemExit(f"error: smtp-sink does not listen on {host}:{port}")


class OurSink(NamedTuple):
    """The rehearsal server: where it listens, its process."""

    port: int
    process: psutil.Process


@contextlib.contextmanager
def our_sink(*options: str, prefix: Sequence[str] = ()) -> Iterator[OurSink]:
    """The engine's own sink with these options. At the end it must have ended by itself, when told so."""
    command = [*prefix, sys.executable, "-m", "actors.sink.actor", "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            _, trouble = process.communicate(timeout=10)
            raise SystemExit(f"error: the sink did not start: {trouble.strip().splitlines()[-1]}")
        yield OurSink(json.loads(line)["port"], psutil.Process(process.pid))
    finally:
        process.terminate()
        process.communicate(timeout=30)


class Postfix(NamedTuple):
    """A private Postfix: port (plain and STARTTLS); ca_file, what to trust; home, its directory."""

    port: int
    ca_file: Path
    home: Path

    def until_empty(self, *, within_s: float = 120.0) -> None:
        """Wait until its queue is delivered, so that one round does not slow down the next."""
        deadline = time.monotonic() + within_s
        queues = [self.home / "spool" / name for name in ("maildrop", "incoming", "active")]
        while any(next(queue.iterdir(), None) for queue in queues):
            if time.monotonic() > deadline:
                raise SystemExit(f"error: Postfix did not empty its queue within {within_s:g} s")
            time.sleep(0.1)


@contextlib.contextmanager
def postfix(end: End | None = None, **settings: str) -> Iterator[Postfix]:
    """A private Postfix with its queue in memory, all mail discarded.

    end       the end of a wire where it stands, or here
    settings  further lines of main.cf
    """
    need("postfix", "saslpasswd2", "openssl", root=True)
    with place(MEMORY) as home:
        running = RunningPostfix(home) if end is None else RunningPostfix(home, end)
        try:
            etc = str(home / "etc")
            lines = [f"{name}={value}" for name, value in {"default_process_limit": "200", **settings}.items()]
            subprocess.run(["postconf", "-c", etc, "-e", *lines], check=True)
            reload = ["postfix", "-c", etc, "reload"]
            subprocess.run(end.command(*reload) if end else reload, check=True, capture_output=True)
            yield Postfix(running.port, running.ca_file, home)
        finally:
            running.stop()


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, as files that any user may read."""
    need("openssl")
    cert, key = directory / "cert.pem", directory / "key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", "req", "-x509", *curve, *names, *files], check=True, capture_output=True)
    key.chmod(0o644)
    return cert, key


class Source(NamedTuple):
    """What smtp-source did: messages a second, and its CPU in us a message."""

    rate: float
    cpu_us: float


def source(
    port: int,
    messages: int,
    message_bytes: int,
    connections: int,
    *,
    host: str = "127.0.0.1",
    prefix: Sequence[str] = (),
) -> Source:
    """Send one constant message of a size again and again, connections kept (`smtp-source -d`)."""
    need("smtp-source")
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        [*prefix, "smtp-source", "-d", "-s", str(connections), "-m", str(messages),
         "-l", str(max(1, message_bytes - SOURCE_HEADER_BYTES)), "-f", "a@example.com", "-t", "b@example.com",
         f"{host}:{port}"],
        check=True, timeout=600,
    )  # fmt: skip
    took_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Source(messages / took_s, cpu_s / messages * 1e6)
