"""`ctl doctor`: what this machine has, and the share of it the engine may use. Works without an engine."""

from typing import Any

import click

from broker.contract.errors import EcmError
from broker.contract.machine import doctor_rows, probe
from ctl import output
from ctl.client import Client, engine_pid
from ctl.options import Options, common, options

__all__ = ["command"]


@click.command("doctor", help="What this machine has, and the share the engine may use. Needs no engine.")
@common
def command() -> None:
    """Facts about the machine."""
    chosen = options()
    state = chosen.state_dir
    share, settings = _settings(chosen)
    pid = engine_pid(state)
    rows = doctor_rows(probe(state.root, measure_disk=state.root.is_dir()), share)
    if chosen.json:
        found = {"v": 1, "state_dir": str(state.root), "settings": settings, "share": share, "engine": {"pid": pid}}
        output.document({**found, "rows": rows})
        return
    output.pairs(
        [
            ("state", str(state.root)),
            ("settings", settings or "built in (no relay)"),
            ("engine", f"runs, pid {pid}" if pid is not None else "does not run; `ctl start` starts it"),
        ]
    )
    output.line()
    budget = f"budget ({share:.0%})"
    output.table(
        ["resource", "found", budget, "note"],
        [[row["name"], row["value"], row["budget"], row["note"] or None] for row in rows],
    )


def _settings(chosen: Options) -> tuple[float, str | None]:
    """(share of the machine, settings file): of the engine if it runs, else as the next start would read them."""
    if chosen.config is None:
        found = _in_force(chosen)
        if found is not None:
            return float(found["budget"]["share"]), found["source"]
    from broker.contract.settings import load_settings

    path = chosen.config_path
    return load_settings(path).budget.share, str(path) if path else None


def _in_force(chosen: Options) -> dict[str, Any] | None:
    try:
        with Client(chosen.state_dir) as client:
            return client.request("engine.config", within_s=5)
    except EcmError as error:
        if error.code in ("no_engine", "timed_out"):
            return None
        raise
