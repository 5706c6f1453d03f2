"""`python -m broker`: be the engine of a state directory, from the lock to the last file removed.

`ctl start` runs this detached and reads one JSON line from `--ready-fd`: {"ready": {...}} or {"error": {...}}.
"""

import argparse
import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

from broker.contract.errors import EcmError, plainly

__all__ = ["main"]


def main() -> int:
    """Run the engine. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m broker", description="the engine; use `ctl start`")
    parser.add_argument("--state", required=True)
    parser.add_argument("--config")
    parser.add_argument("--ready-fd", type=int)
    options = parser.parse_args()
    try:
        from broker.startup import serve

        serve(Path(options.state), Path(options.config) if options.config else None, _reporter(options.ready_fd))
    except EcmError as error:
        return _failed(options.ready_fd, error)
    except OSError as error:  # a full disk, most of all: then the log may have taken nothing
        code = "disk_full" if error.errno == errno.ENOSPC else "io_failed"
        return _failed(options.ready_fd, EcmError(code, f"the engine cannot run: {plainly(error)}"))
    return 0


def _failed(ready_fd: int | None, error: EcmError) -> int:
    _report(ready_fd, {"error": error.to_map()})
    sys.stderr.write(error.text() + "\n")
    return error.exit


def _reporter(ready_fd: int | None) -> Any:
    return lambda ready: _report(ready_fd, {"ready": ready})


def _report(ready_fd: int | None, line: dict[str, Any]) -> None:
    """Tell who started us, once; a second report has nobody left to read it."""
    if ready_fd is None:
        return
    try:
        os.write(ready_fd, json.dumps(line).encode() + b"\n")
        os.close(ready_fd)
    except OSError:
        return  # `ctl start` was interrupted, or has read its line and gone


if __name__ == "__main__":
    sys.exit(main())
