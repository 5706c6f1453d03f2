"""The README's tour, run for real: its commands in order, in one shell, against an engine and a sink of its own.

A line `$ COMMAND` of a `console` block is run; the lines below it are what it must print, but for what differs from run
to run (times, pids, rates). `...` stands for any lines, or at the end of a line for any rest of it. Two things are put
in for the test: a free port in place of 2525, and a wait for the sink to listen.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
WITHIN_S = 100

MARK = "@@@"
LISTENING = "until grep -qs listening sink.log; do read -rt 0.05 <> <(:) || :; done"

# What differs from run to run, and what stands in its place in both texts.
VARIES = (
    (r"pid \d+", "pid N"),
    (r"\S*/news/", "NEWS/"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
    (r"\bin [\d,.]+ (s|min \d+ s)$", "in N s"),
    (r"\d[\d,]* went out(, \d+ still in flight)?", "N went out"),
    (r"[\d,.]+ ms\b", "N ms"),
    (r"^(seconds|per_second) .*", r"\1 N"),
    (r"engine [0-9a-f]{12}", "engine ID"),
    (r"sessions \d+", "sessions N"),
    (r"[ \t]+", " "),
)
# How far a campaign is when one looks depends on the machine: these lines come or not.
MAY_COME = re.compile(r"campaign \S+ is \w+: audience [\d,]+|campaign \S+: \d+ retr(y|ies) left.*")


def tour(page: str) -> list[tuple[str, list[str]]]:
    """The commands of a page's `console` blocks, each with the lines shown below it."""
    steps: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
    return steps


def script(steps: list[tuple[str, list[str]]], port: int) -> str:
    """The tour as one shell script; after each step stands its mark with its exit status."""
    lines = []
    for command, _ in steps:
        lines.append(re.sub(r"\bctl sink\b", f"ctl sink --port {port}", command))
        lines.append(f'echo "{MARK}$?"')
        if command == "ctl init":
            lines.append(f"sed -i 's/^port = 2525/port = {port}/' ecm.toml")
        if command.startswith("ctl sink"):
            lines.append(LISTENING)
    return "\n".join(lines)


def plain(line: str) -> str:
    """A line without what differs from run to run."""
    for pattern, same in VARIES:
        line = re.sub(pattern, same, line)
    return line.strip()


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether what was printed is what the page shows."""
    pattern = ""
    for line in shown:
        if line == "...":
            pattern += r"(.*\n)*?"
        elif line.endswith("..."):
            pattern += re.escape(plain(line.removesuffix("..."))) + r".*\n"
        else:
            pattern += re.escape(plain(line)) + r"\n"
    text = "".join(f"{plain(line)}\n" for line in printed if not MAY_COME.fullmatch(line))
    return re.fullmatch(pattern, text) is not None


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(text: str, place: Path) -> str:
    """What a shell prints for a script, stdout and stderr together; nothing of it is left afterwards."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ECM_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "PYTHONUNBUFFERED": "1"}
    shell = subprocess.Popen(
        ["bash", "-c", text], cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        return shell.communicate(timeout=WITHIN_S)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)  # the sink, if the tour did not end it
        stop = [sys.executable, "-m", "ctl.main", "--state", str(place / "news" / "var"), "stop", "--now"]
        subprocess.run(stop, env=environment, capture_output=True, timeout=WITHIN_S, check=False)


def test_tour_of_readme_prints_what_readme_shows(tmp_path: Path) -> None:
    """Every command of the README's tour ends with status 0 and prints what the page says."""
    steps = tour(README.read_text(encoding="utf-8"))
    port = free_port()
    printed = run(script(steps, port), tmp_path).replace(str(port), "2525")
    parts = re.findall(rf"(.*?){MARK}(\d+)\n", printed, re.DOTALL)
    assert len(parts) == len(steps), printed
    for (command, shown), (output, status) in zip(steps, parts, strict=True):
        assert status == "0", f"$ {command}\n{output}"
        assert matches(shown, output.splitlines()), f"$ {command}\nshown:\n{chr(10).join(shown)}\nprinted:\n{output}"


def test_tour_shows_every_step_of_a_campaign() -> None:
    """The tour goes from nothing to an exported account: no step was lost in an edit."""
    commands = [command for command, _ in tour(README.read_text(encoding="utf-8"))]
    wanted = (
        *("init", "sink", "start", "relay check", "campaign check", "send", "stats", "campaign pause", "suppress add"),
        *("campaign resume", "campaign wait", "campaign export", "stop", "campaign verify"),
    )
    places = [next(i for i, command in enumerate(commands) if command.startswith(f"ctl {words}")) for words in wanted]
    assert places == sorted(places)
