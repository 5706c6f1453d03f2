"""The rehearsal server: an SMTP server that accepts mail, refuses some on request, and keeps the score.

    python -m actors.sink.actor --port 2525 [--latency MS] [--defer P] [--bounce P] [--keep DIR] ...

It delivers nothing and relays nothing. It prints one line when it listens, its counts on SIGUSR1 and when it ends
(SIGTERM, SIGINT, --max-messages), and nothing in between. It is the other end of tests, of the demo and of `ctl sink`;
it belongs to no engine and touches no state directory.

Invariants
- The line "listening on ..." is printed once connections are accepted, and is the first line on stdout.
- When counts have been printed, every message they count is in the file of --keep.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

import uvloop
from setproctitle import setproctitle

from actors.sink.conversation import Conversation, Manners
from actors.sink.policy import Policy
from actors.sink.record import Record
from broker.contract.errors import EcmError

__all__ = ["main"]

_BACKLOG = 4096  # as many senders may connect at once as the kernel lets wait
_CHECK_S = 0.02  # how often --max-messages is looked at: it need not be exact, and costs nothing per message


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"a share between 0 and 1 is needed: {text}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 3_600_000.0:
        raise argparse.ArgumentTypeError(f"milliseconds between 0 and an hour are needed: {text}")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"a port between 0 and 65535 is needed: {text}")
    return value


def parser() -> argparse.ArgumentParser:
    """The options of the sink."""
    options = argparse.ArgumentParser(
        prog="ctl sink", description="An SMTP server that accepts mail and delivers nothing"
    )
    options.add_argument("--port", type=_port, default=2525, help="0 = any free port (default: 2525)")
    options.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    options.add_argument("--latency", type=_positive, default=0.0, metavar="MS", help="answer each group so much later")
    options.add_argument("--defer", type=_share, default=0.0, metavar="P", help="share deferred at the first attempt")
    options.add_argument("--bounce", type=_share, default=0.0, metavar="P", help="share refused for good")
    options.add_argument("--seed", type=int, default=0, help="another seed, other recipients are deferred and refused")
    options.add_argument("--keep", type=Path, metavar="DIR", help="append accepted messages to DIR/messages.ndjson")
    options.add_argument("--keep-first", type=int, metavar="N", help="keep the first N only; the rest is counted")
    options.add_argument("--max-messages", type=int, default=0, metavar="N", help="end after N messages")
    options.add_argument("--no-pipelining", action="store_true", help="do not announce PIPELINING")
    options.add_argument("--json", action="store_true", help="print JSON, one document a line")
    return options


class Sink:
    """One run: the listening socket, its sessions, and their end. Raises EcmError if it cannot keep messages."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        try:
            self._record = Record(arguments.keep, arguments.keep_first)
        except OSError as error:
            raise _failed(f"cannot write {error.filename or arguments.keep}", error) from error
        self._policy = Policy(arguments.defer, arguments.bounce, arguments.seed)
        self._manners = Manners(latency_s=arguments.latency / 1000, pipelining=not arguments.no_pipelining)
        self._sessions: set[Conversation] = set()
        self._stop = asyncio.Event()
        self._record.on_failure = self._stop.set

    async def run(self) -> None:
        """Serve until told to stop. Raises EcmError if the port cannot be had or the disk takes no more."""
        loop = asyncio.get_running_loop()
        host, port = self._arguments.host, self._arguments.port
        try:
            server = await loop.create_server(self._converse, host, port, backlog=_BACKLOG, reuse_address=True)
        except OSError as error:
            raise _failed(f"cannot listen on {host}:{port}", error) from error
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGUSR1, self._print_counts)
        self._print_address(server)
        try:
            await self._until_stopped()
        finally:
            server.close()
            for session in list(self._sessions):
                session.end()
            self._record.close()
        self._print_counts()
        if self._record.failure is not None:
            raise _failed(f"cannot write {self._arguments.keep}/messages.ndjson", self._record.failure)

    async def _until_stopped(self) -> None:
        most = self._arguments.max_messages
        if not most:
            await self._stop.wait()
            return
        while not self._stop.is_set() and self._record.counts["messages"] < most:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _CHECK_S)

    def _converse(self) -> Conversation:
        return Conversation(self._manners, self._policy, self._record, self._sessions)

    def _print_address(self, server: asyncio.Server) -> None:
        host, port = server.sockets[0].getsockname()[:2]
        self._print({"host": host, "port": port}, f"listening on {host}:{port}")

    def _print_counts(self) -> None:
        self._record.flush()
        totals = self._record.totals()
        self._print(totals, ", ".join(f"{name} {count}" for name, count in totals.items()))

    def _print(self, document: dict[str, object] | dict[str, int], text: str) -> None:
        sys.stdout.write((json.dumps(document) if self._arguments.json else text) + "\n")
        sys.stdout.flush()


def _failed(what: str, error: OSError) -> EcmError:
    # uvloop words the errors of bind itself, at length; a resolver's errors have negative numbers.
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else error.strerror or str(error)
    return EcmError("sink_failed", f"{what}: {reason}")


def main(argv: list[str] | None = None) -> int:
    """Run the sink; returns the exit status."""
    options = parser()
    arguments = options.parse_args(argv)
    if arguments.defer + arguments.bounce > 1:
        options.error("--defer and --bounce are shares of the same recipients: together at most 1")
    setproctitle("email-campaign: sink")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        uvloop.run(Sink(arguments).run())
    except EcmError as error:
        sys.stderr.write((json.dumps({"error": error.to_map()}) if arguments.json else error.text()) + "\n")
        return error.exit
    except BrokenPipeError:  # nobody reads our output any more; Python's own flush at exit would complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
