"""What a message costs in a sender, stage by stage: microseconds of one core, in the order of a recipient's walk.

    python -m bench.stages [--bytes 4096] [--rows 10000] [--dir DIR]

Each stage runs alone over one shard of made-up people; the fastest of five rounds counts, in CPU of the thread that
does it, so that other work on the machine does not count. `sync` is the exception: it waits for the disk, in a thread
of its own beside the others, once an interval for all messages of that interval, so its time is given as it is.
The sum is less than what `bench.sender` measures of the whole: between the stages lies the event loop.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgpack

from actors.message.compose import Composer
from actors.smtp.transaction import Mode, Transactions
from bench.ours import Campaign
from bench.peers import place
from broker.contract.campaign import parse_campaign
from shm.address import key
from shm.files.ledger import Ledger, States
from shm.files.shard import Shard, ShardWriter

ROUNDS = 5
drop = deque[object](maxlen=0).extend  # run through them and keep none: memory that is asked for anew costs too
INSTANCE = "ab" * 16
NOW_S = 1_795_516_093
OK = b"250 2.0.0 Ok: queued as 12AB34\r\n"
ENVELOPE = OK * 2 + b"354 End data with <CR><LF>.<CR><LF>\r\n"  # to MAIL, RCPT, DATA
# What a relay says before the first message of a round is under way, and then to each: with PIPELINING alone, to a body
# and to the envelope behind it; with CHUNKING to RSET, MAIL, RCPT and BDAT.
REPLIES = {Mode.PIPELINING: (ENVELOPE, OK + ENVELOPE), Mode.BDAT: (b"", OK * 4)}
BATCHES = (1, 4, 16)  # messages in one write


def show(stage: str, us: float, note: str = "") -> None:
    """One line of the table."""
    print(f"{stage:<44}{us:>8.2f} us   {note}", flush=True)


def best(rows: int, work: Callable[[], object]) -> float:
    """Microseconds of this thread's CPU for each of the rows, in the fastest round."""
    found = []
    for _ in range(ROUNDS):
        began_ns = time.thread_time_ns()
        work()
        found.append((time.thread_time_ns() - began_ns) / rows / 1000)
    return min(found)


def make_shard(path: Path, rows: int) -> Shard:
    """A shard of people with three columns."""
    writer = ShardWriter(path, instance=INSTANCE, campaign=1, shard=1)
    for row in range(rows):
        email = f"user{row}@example{row % 50}.com"
        fields = {"email": email, "first_name": f"Name {row}", "city": f"City {row % 300}", "_line": row + 2}
        writer.add(key(email), msgpack.packb(fields))
    writer.finish()
    return Shard.open(path, instance=INSTANCE, campaign=1, shard=1)


def measure_composing(shard: Shard, campaign: Campaign) -> bytes:
    """Row read and compose; returns a message."""
    rows = range(shard.rows)
    fields = shard.fields
    show("row read", best(len(rows), lambda: drop(map(fields, rows))), "record out of the shard, unpacked")
    request = campaign.request("bench", "default")
    spec = parse_campaign(request["text"], "campaign.toml", request["attached"]).to_map()
    compose = Composer(spec, INSTANCE, 1, "email").compose
    people = [(fields(row), row.to_bytes(16, "big")) for row in rows]
    us = best(len(rows), lambda: drop(compose(person, name, NOW_S) for person, name in people))
    message: bytes = compose(*people[-1], NOW_S).data
    show("compose", us, f"{len(message):,} bytes, HTML and text, three fields each")
    return message


def measure_transactions(message: bytes, rows: int) -> None:
    """Commands around a message, and its replies, in both quick modes."""
    sender, reader = b"news@example.com", b"user@example.com"
    for mode, (opening, replies) in REPLIES.items():

        def through(mode: Mode = mode, opening: bytes = opening, replies: bytes = replies) -> None:
            client = Transactions(mode)
            if opening:
                client.submit(rows, sender, reader, message)
                client.receive(opening)
            for number in range(rows):
                client.submit(number, sender, reader, message)
                client.receive(replies)

        show(f"transaction, {mode.name}", best(rows, through), "submit and all replies, without a socket")


def measure_record(directory: Path, rows: int) -> None:
    """Claim, SENDING and SENT in the ledger; then how long its sync takes."""
    path = directory / "ledger"
    found, syncs = [], []
    for _ in range(ROUNDS):
        path.unlink(missing_ok=True)
        Ledger.create(path, instance=INSTANCE, campaign=1, shard=1, rows=rows)
        ledger = Ledger.open(path, instance=INSTANCE, campaign=1, shard=1, writable=True)
        began_ns = time.thread_time_ns()
        ledger.claim(range(rows))
        for row in range(rows):
            ledger.sending(row, NOW_S)
            ledger.conclude(row, States.SENT, 250, (2, 0, 0), 0, NOW_S)
        found.append((time.thread_time_ns() - began_ns) / rows / 1000)
        began = time.perf_counter()
        ledger.sync()
        syncs.append((time.perf_counter() - began) * 1000)
        ledger.close()
    show("record", min(found), "claimed, SENDING, SENT: words of a mapped file")
    print(f"{'sync':<44}{statistics.median(syncs):>8.2f} ms   of {rows:,} rows; at most once in `sync_ms`, in a thread")


def measure_writes(message: bytes, rows: int) -> None:
    """One `send` for so many messages over loopback, and the `recv` of their replies."""
    for batch in BATCHES:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            theirs, _ = server.accept()
        length, out, replies = len(message) * batch, message * batch, OK * 4 * batch
        rounds = rows // batch

        def answer(peer: socket.socket = theirs, length: int = length, replies: bytes = replies) -> None:
            """Take a batch, answer it; the end of the connection ends it."""
            while True:
                left = length
                while left:
                    taken = len(peer.recv(left))
                    if not taken:
                        return
                    left -= taken
                peer.sendall(replies)

        def exchange(
            rounds: int = rounds, out: bytes = out, owed: int = len(replies), end: socket.socket = ours
        ) -> None:
            for _ in range(rounds):
                end.sendall(out)
                left = owed
                while left:
                    left -= len(end.recv(left))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            us = best(rounds * batch, exchange)
        finally:
            ours.close()
            thread.join(10)
            theirs.close()
        show(f"system calls, {batch} a write", us, "send and recv over loopback, TCP's work included")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=4096, help="size of a whole message")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dir", type=Path, help="where the files go: the disk whose sync is measured")
    options = parser.parse_args()
    with place(options.dir) as directory:
        shard = make_shard(directory / "shard", options.rows)
        try:
            message = measure_composing(shard, Campaign.make(directory, 10, options.bytes))
        finally:
            shard.close()
        measure_transactions(message, options.rows)
        measure_writes(message, options.rows)
        measure_record(directory, options.rows)


if __name__ == "__main__":
    main()
