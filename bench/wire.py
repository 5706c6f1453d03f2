"""A long wire on one machine: two network namespaces joined by TUN devices, each packet held back for a while.

    python -m bench.wire NS_A NS_B ONE_WAY_MS

carries packets until it is told to end, and prints "ready" when it does. Round trips, acknowledgements and windows are
real: the kernel has no netem here, and a server that answers late is no distance. `wire` makes the namespaces too.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import psutil

from bench.peers import need

__all__ = ["Wire", "wire"]

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
BATCH = 64  # packets read from one end before the other has its turn
QUEUE = 10_000  # packets the kernel keeps for us while we are busy
NEAR, FAR = "10.202.0.1", "10.202.0.2"


class Wire(NamedTuple):
    """near, far: what a command stands behind to run at that end; far_host: the address there; process: the carrier."""

    near: tuple[str, ...]
    far: tuple[str, ...]
    far_host: str
    process: psutil.Process


@contextlib.contextmanager
def wire(one_way_ms: float) -> Iterator[Wire]:
    """Two namespaces, so many milliseconds apart each way; both are gone at the end."""
    need("ip", root=True)
    names = [f"ecm-bench-{end}-{os.getpid()}" for end in "ab"]
    carrier = None
    try:
        for name in names:
            _ip("netns", "add", name)
        command = [sys.executable, "-m", "bench.wire", *names, str(one_way_ms)]
        carrier = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert carrier.stdout is not None
        if carrier.stdout.readline().strip() != "ready":
            raise SystemExit("error: no TUN device can be made here: /dev/net/tun and CAP_NET_ADMIN are needed")
        for name, address in zip(names, (NEAR, FAR), strict=True):
            _ip("-n", name, "addr", "add", f"{address}/30", "dev", "wire0")
            _ip("-n", name, "link", "set", "wire0", "txqueuelen", str(QUEUE), "up")
            _ip("-n", name, "link", "set", "lo", "up")
        near, far = (("ip", "netns", "exec", name) for name in names)
        yield Wire(near, far, FAR, psutil.Process(carrier.pid))
    finally:
        if carrier is not None:
            carrier.terminate()
            carrier.wait()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _tun(namespace: str) -> int:
    """A TUN device `wire0` in a namespace; its descriptor, non-blocking."""
    libc = ctypes.CDLL(None, use_errno=True)
    home, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(there, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"wire0", IFF_TUN | IFF_NO_PI))
    libc.setns(home, CLONE_NEWNET)
    os.close(home)
    os.close(there)
    return device


def _deliver(device: int, waiting: deque[tuple[float, bytes]]) -> None:
    """Hand over the packets that are due, as far as the device takes them."""
    while waiting and waiting[0][0] <= time.monotonic():
        try:
            os.write(device, waiting[0][1])
        except BlockingIOError:
            return
        except OSError:
            pass  # the interface is down: a lost packet
        waiting.popleft()


def carry(names: list[str], delay_s: float) -> None:
    """Carry packets both ways until a signal ends the process."""
    ends = [_tun(name) for name in names]
    waiting: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in ends}
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    print("ready", flush=True)
    while True:
        due = [queue[0][0] for queue in waiting.values() if queue]
        timeout_s = max(0.0, min(due) - time.monotonic()) if due else None
        for end in select.select(ends, [], [], timeout_s)[0]:
            with contextlib.suppress(OSError):
                for _ in range(BATCH):
                    packet = os.read(end, 65535)
                    waiting[other[end]].append((time.monotonic() + delay_s, packet))
        for end, queue in waiting.items():
            _deliver(end, queue)


if __name__ == "__main__":
    carry(sys.argv[1:3], float(sys.argv[3]) / 1000)
