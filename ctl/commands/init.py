"""`ctl init`: what a newcomer starts from. Never overwrites anything."""

from importlib.resources import files
from pathlib import Path
from shlex import quote

import click

from broker.contract.errors import EcmError
from ctl import output
from ctl.options import common, options

__all__ = ["FILES", "command"]

FILES = ("ecm.toml", "campaign.toml", "message.html", "message.txt", "recipients.csv")


@click.command("init", help="Write commented settings and a campaign to start from. Never overwrites.")
@common
@click.argument("directory", metavar="[DIR]", default=".")
def command(directory: str) -> None:
    """Write the files."""
    place = Path(directory)
    write_all(place)
    if options().json:
        output.document({"directory": str(place.absolute()), "files": list(FILES)})
        return
    cd = "" if place.absolute() == Path.cwd() else f"cd {quote(directory)} && "
    output.say(f"wrote {', '.join(FILES[:-1])} and {FILES[-1]}")
    output.say(f"1. {cd}ctl sink    (a relay for rehearsals: takes mail, delivers none; leave it running)")
    output.say(f"2. {cd}ctl start && ctl send campaign.toml    (in another terminal)")
    output.say("3. put your own relay into ecm.toml, your own words and people into the other files, and send again")


def write_all(place: Path) -> None:
    """Write all files or none. Raises EcmError, naming the file that is in the way."""
    for name in FILES:
        if (place / name).is_symlink() or (place / name).exists():
            raise _in_the_way(place / name)
    written: list[Path] = []
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            content = (files("ctl") / "newcomer" / name).read_bytes()
            with (place / name).open("xb") as file:
                written.append(place / name)
                file.write(content)
    except OSError as error:
        for path in written:
            path.unlink()
        if isinstance(error, FileExistsError) and error.filename != str(place):
            raise _in_the_way(Path(error.filename)) from None
        raise EcmError(
            "state_unwritable", f"cannot be written: {error.strerror}", file=str(error.filename or place)
        ) from None


def _in_the_way(path: Path) -> EcmError:
    return EcmError(
        "invalid_value",
        "the file is already there",
        file=str(path),
        hint="ctl init never overwrites: name another directory, or move the file away",
    )
