"""The same campaign by nodemailer's pool, into the same `smtp-sink` with the same size, in one run.

    python -m bench.nodemailer [--messages 40000] [--bytes 4096] [--rounds 3] [--connections 20]

nodemailer is installed by npm into a temporary directory, which is gone at the end. Without Node, npm, or a registry
that npm reaches, one line says so and nothing is measured.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from bench.figures import Rounds, options_of
from bench.ours import Campaign, engine, relay
from bench.peers import PACKAGES, need, place, smtp_sink

SCRIPT = Path(__file__).with_suffix(".mjs")
THEIRS_SHARE = 8  # one of so many messages is sent by nodemailer: enough for a rate


def install(directory: Path) -> str | None:
    """Install nodemailer into a directory; what stands in the way, or None."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"{program} is missing ({PACKAGES[program]})"
    directory.mkdir()
    (directory / "package.json").write_text('{"private": true, "type": "module"}\n')
    shutil.copy(SCRIPT, directory)
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", "nodemailer"]
    try:
        done = subprocess.run(command, cwd=directory, check=False, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "npm did not install nodemailer within 120 s"
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no reason given").splitlines()[0]
        return f"npm cannot install nodemailer: {reason}"
    return None


def pool(directory: Path, port: int, campaign: Campaign, messages: int, connections: int) -> float:
    """Messages a second."""
    told = {
        "host": "127.0.0.1", "port": port, "connections": connections, "messages": messages,
        "html": campaign.html, "text": campaign.text,
    }  # fmt: skip
    (directory / "campaign.json").write_text(json.dumps(told))
    done = subprocess.run(
        ["node", SCRIPT.name, "campaign.json"], cwd=directory, check=True, capture_output=True, text=True, timeout=600
    )
    result = json.loads(done.stdout)
    return float(result["sent"] / result["seconds"])


def main() -> None:
    """Measure and print."""
    options = options_of(__doc__, 40_000).parse_args()
    need("smtp-sink")
    rates = Rounds("messages a second")
    with place() as directory:
        trouble = install(directory / "node")
        if trouble:
            print(f"skipped: {trouble}")
            return
        with smtp_sink() as port, engine(directory, relay("default", port, options.connections)) as ours:
            campaign = Campaign.make(directory, options.messages, options.bytes)
            size = campaign.message_bytes
            print(f"{options.messages:,} messages of {size:,} bytes, {options.connections} connections", flush=True)
            ours.send(Campaign.make(directory, min(options.messages, 10_000), options.bytes), "warm-up")
            for number in range(options.rounds):
                rates.add("engine", ours.send(campaign, f"round-{number}").rate)
                few = max(1, options.messages // THEIRS_SHARE)
                rates.add("nodemailer pool", pool(directory / "node", port, campaign, few, options.connections))
    rates.show()
    rates.ratio("engine", "nodemailer pool")


if __name__ == "__main__":
    main()
