"""An engine and a rehearsal server for one occasion, in a temporary directory: what the demo and rehearsals play on.

Invariants
- It touches no other engine: its state directory is its own, whatever ECM_STATE and ECM_CONFIG say.
- However its owner ends (Ctrl-C and SIGTERM included), `clean` leaves no process, no shared memory and no file.
- An owner that is killed leaves no process.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from ctl import output
from ctl.client import engine_pid
from ctl.commands.start import start_detached
from ctl.commands.stop import stop_engine
from ctl.modules import program
from ctl.tied import tied

__all__ = ["Stage"]

SINK_S = 20.0  # until the sink must listen, and later end
LOG_LINES = 20
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stage:
    """One directory, at most one sink and one engine.

    place   the directory;  state  of the engine;  kept  where the sink keeps messages
    """

    def __init__(self, name: str) -> None:
        self.place = Path(tempfile.mkdtemp(prefix=f"ecm-{name}-", dir="/tmp"))  # short: sockets lie in it
        self.state = StateDir(self.place / "var")
        self.kept = self.place / "sink"
        self._sink_says = self.place / "sink.err"
        self._sink: subprocess.Popen[str] | None = None
        self._held = self._signalled = False
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("ECM_")}
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Interrupt what is being done, or what follows it if that may not be interrupted."""
        self._signalled = True
        if not self._held:
            raise KeyboardInterrupt

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        """A process is made and noted, or neither: one that is not noted would never be ended."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._signalled:
            raise KeyboardInterrupt

    def start_sink(self, keep_first: int, *options: str) -> tuple[str, int]:
        """A sink on a free port that keeps its first messages: (host, port).

        Raises EcmError: what the sink itself says of its options, or sink_failed.
        """
        told = ("--port", "0", "--json", "--keep", str(self.kept), "--keep-first", str(keep_first))
        with self._sink_says.open("wb") as says, self._uninterrupted():
            self._sink = subprocess.Popen(
                tied(program("actors.sink.actor", (*told, *options))),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=says, text=True, env=self.environment,
                start_new_session=True,  # Ctrl-C reaches us alone: we end it when nobody speaks with it any more
            )  # fmt: skip
        assert self._sink.stdout is not None
        line = self._sink.stdout.readline()
        if not line:
            raise self._sink_ended(f"the sink ended with status {self._sink.wait(SINK_S)}")
        where = json.loads(line)
        return where["host"], where["port"]

    def stop_sink(self) -> dict[str, int]:
        """End the sink; its counts."""
        sink = self._sink
        assert sink is not None, "it was started"
        assert sink.stdout is not None
        sink.terminate()
        line = sink.stdout.readline()
        sink.wait(SINK_S)
        if not line:
            raise self._sink_ended(f"the sink ended with status {sink.returncode} and told no counts")
        counts: dict[str, int] = json.loads(line)
        return counts

    def _sink_ended(self, how: str) -> EcmError:
        """Why the sink ended: its own error if it told one, else how it ended and its last words."""
        words = self._sink_says.read_text(encoding="utf-8", errors="replace").splitlines()
        last = words[-1] if words else ""
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return EcmError.from_map(json.loads(last)["error"])
        return EcmError("sink_failed", f"{how}: {last}" if last else how)

    def start_engine(self, config: Path) -> dict[str, Any]:
        """Start the engine, tied to this process; what it says when it is ready. Raises EcmError."""
        return start_detached(
            self.state, tied(program("broker", ("--state", str(self.state.root), "--config", str(config))))
        )

    def tell_log(self) -> None:
        """The end of the engine's log, to see why."""
        log = self.state.log
        if log.is_file():
            output.say(f"the end of {log}:")
            for text in log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]:
                output.say(f"  {text}")

    def clean(self) -> None:
        """Stop everything and remove everything; another Ctrl-C does not stop that."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if engine_pid(self.state) is not None:
            with contextlib.suppress(EcmError):  # it has ended meanwhile, or ends with us
                stop_engine(self.state, now=True)
        if self._sink is not None:
            self._sink.terminate()
            self._sink.wait(SINK_S)
        shutil.rmtree(self.place)
