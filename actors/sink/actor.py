"""The rehearsal server: an SMTP server that accepts mail, refuses some on request, and keeps the score.

    python -m actors.sink.actor --port 2525 [--latency MS] [--defer P] [--tls starttls] [--keep DIR] ...

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
import errno
import json
import os
import resource
import signal
import socket
import sys
from dataclasses import replace

import uvloop
from setproctitle import setproctitle

from actors.sink import options
from actors.sink.conversation import Conversation
from actors.sink.record import Record
from actors.sink.tls import server_context
from broker.contract.errors import EcmError
from broker.contract.place import place

__all__ = ["main"]

_BACKLOG = 4096  # as many senders may connect at once as the kernel lets wait
_ALWAYS = ("sessions", "messages", "bytes", "duplicates")  # a person is told of these even if there were none
_CHECK_S = 0.02  # how often --max-messages is looked at: it need not be exact, and costs nothing per message


class Sink:
    """One run: the listening socket, its sessions, and their end. Raises EcmError if it cannot keep messages."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        try:
            self._record = Record(arguments.keep, arguments.keep_first)
        except OSError as error:
            raise _failed(f"cannot write {error.filename or arguments.keep}", error) from error
        try:
            self._manners = options.manners(arguments)
        except OSError as error:
            raise _failed(f"cannot read {error.filename}", error) from error
        context = server_context(arguments.cert, arguments.key) if arguments.tls != "none" else None
        self._implicit = context if arguments.tls == "implicit" else None
        if self._implicit is None:
            self._manners = replace(self._manners, starttls=context)
        self._policy = options.policy(arguments)
        self._sessions: set[Conversation] = set()
        self._stop = asyncio.Event()
        self._record.on_failure = self._stop.set

    async def run(self) -> None:
        """Serve until told to stop. Raises EcmError if the port cannot be had or the disk takes no more."""
        loop = asyncio.get_running_loop()
        host, port = self._arguments.host, self._arguments.port
        try:
            server = await loop.create_server(
                self._converse, host, port, backlog=_BACKLOG, reuse_address=True, ssl=self._implicit
            )
        except OSError as error:
            raise _failed(f"cannot listen on {place(host, port)}", error, _other_place(error)) from error
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
        self._print({"host": host, "port": port}, f"listening on {place(host, port)}")

    def _print_counts(self) -> None:
        self._record.flush()
        totals = self._record.totals()
        told = [f"{name} {count}" for name, count in totals.items() if count or name in _ALWAYS]
        self._print(totals, ", ".join(told))

    def _print(self, document: dict[str, object] | dict[str, int], text: str) -> None:
        sys.stdout.write((json.dumps(document) if self._arguments.json else text) + "\n")
        sys.stdout.flush()


def _failed(what: str, error: OSError, hint: str | None = None) -> EcmError:
    # uvloop words the errors of bind itself, at length; a resolver's errors have negative numbers.
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else error.strerror or str(error)
    return EcmError("sink_failed", f"{what}: {reason}", hint=hint)


def _other_place(error: OSError) -> str | None:
    """What to do about an address that cannot be listened on."""
    match error.errno:
        case errno.EADDRINUSE:
            return "something listens there already: choose another --port, 0 takes any free one"
        case errno.EACCES:
            return "ports below 1024 are for root: choose another --port, 0 takes any free one"
        case errno.EADDRNOTAVAIL:
            return "--host names an address of this machine"
    return "--host names an address of this machine" if isinstance(error, socket.gaierror) else None


def main(argv: list[str] | None = None) -> int:
    """Run the sink; returns the exit status."""
    given = sys.argv[1:] if argv is None else argv
    setproctitle("email-campaign: sink")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        uvloop.run(Sink(options.parse(given)).run())
    except EcmError as error:
        sys.stderr.write((json.dumps({"error": error.to_map()}) if "--json" in given else error.text()) + "\n")
        return error.exit
    except BrokenPipeError:  # nobody reads our output any more; Python's own flush at exit would complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
