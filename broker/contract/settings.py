"""The settings of an engine: `ecm.toml`, checked and with its defaults.

May import pydantic; reads the settings file and the password files it names, nothing else. Never on ctl's quick
path. The description of each field is what its error message says, so it stands once.

Invariants
- What `load_settings` returns can be used as it is: relays of pools exist, passwords are read, every default is
  filled in.
- A `Settings` is frozen; a reload makes a new one.
- A password appears in no repr and in no public map.
"""

from __future__ import annotations

import os
import pwd
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator
from typing_extensions import TypedDict

from broker.contract.errors import EcmError
from broker.contract.limits import Rate, Seconds, Share, Weight
from broker.contract.problems import Problem, Table, explain, in_file_order, internal_keys, nearest, unknown_key, wrong
from broker.contract.relay import Relay, Timeouts
from broker.contract.tomlfile import KeyPath, Places, load_toml

__all__ = [
    "RELAYS_MAX",
    "RETRY_CLASSES",
    "Budget",
    "EngineSettings",
    "LedgerSettings",
    "Rate",
    "Relay",
    "Retry",
    "RetryClass",
    "Settings",
    "Timeouts",
    "check_settings",
    "load_settings",
]

RELAYS_MAX = 64  # rows of the arena's relay table
FILE_BYTES_MAX = 1 << 20  # settings, passwords, certificates: anything larger was named by mistake

RETRY_CLASSES = ("recipient", "sender", "greylisting", "throttling", "mailbox_full", "other")
"""Classes of temporary refusals, as `actors/smtp/outcome.py` names them."""

_SHIPPED = {  # seconds: what a class gets where [retry] says nothing
    "greylisting": {"first_s": 300, "max_s": 3600},  # lists forget a pair that does not come back within hours
    "throttling": {"first_s": 600},  # whoever is too busy for us is so for a while, and more knocking prolongs it
    "sender": {"first_s": 1800},  # a list that blocks us, a quota: people have to act, or an hour to pass
    "mailbox_full": {"first_s": 3600, "max_s": 14400},  # people do not empty a mailbox in five minutes
}

_TIMES = {"first_s": 300, "max_s": 14400}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RetryClass(TypedDict):
    """Times of one class of temporary refusals, both filled in."""

    first_s: Seconds
    max_s: Seconds


class Retry(Table):
    """When a deferred recipient is tried again.

    first_s    wait after the first refusal; it doubles with each further one
    max_s      longest wait
    give_up_s  after the first attempt: the recipient has failed
    share      of leases and grants that retries may have while fresh mail waits, at most
    classes    reply class -> its own first_s and max_s; a class that is missing uses the two above
    """

    first_s: Seconds = _TIMES["first_s"]
    max_s: Seconds = _TIMES["max_s"]
    give_up_s: Seconds = 86400
    share: Share = 0.25
    classes: dict[str, RetryClass] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_classes(cls, given: Any) -> Any:
        """Sub-tables of [retry] into `classes`, each completed: what is set beats what is shipped."""
        if not isinstance(given, dict) or "classes" in given:
            return given
        named = {key: value for key, value in given.items() if isinstance(value, dict) or key in RETRY_CLASSES}
        table = {key: value for key, value in given.items() if key not in named}
        classes: dict[str, Any] = {
            name: cls._completed(name, named.get(name, {}), table) for name in (*_SHIPPED, *named)
        }
        return {**table, "classes": classes}

    @staticmethod
    def _completed(name: str, own: Any, general: dict[str, Any]) -> Any:
        """Times of a class: its own, else what [retry] sets, else what is shipped, else the default."""
        if not isinstance(own, dict):
            return own
        set_here = {key: general[key] for key in _TIMES if key in general}
        times = {**_TIMES, **_SHIPPED.get(name, {}), **set_here, **own}
        if "max_s" not in own and isinstance(times["first_s"], int) and isinstance(times["max_s"], int):
            times["max_s"] = max(times["max_s"], times["first_s"])
        return times

    def times(self, reply_class: str) -> tuple[int, int]:
        """(first_s, max_s) of a reply class."""
        own = self.classes.get(reply_class)
        return (own["first_s"], own["max_s"]) if own else (self.first_s, self.max_s)


class Budget(Table):
    """The part of the machine the engine may use."""

    share: Annotated[float, Field(gt=0, le=1, description="a share above 0, at most 1")] = 0.90


class LedgerSettings(Table):
    """How often outcomes are made durable: an interval of `sync_ms` milliseconds."""

    sync_ms: Annotated[int, Field(ge=1, le=10_000, description="a whole number of milliseconds from 1 to 10000")] = 50


class EngineSettings(Table):
    """`trace`: write the time of every attempt; `user`: whom actors become when the engine is started as root."""

    trace: Annotated[bool, Field(description="true or false")] = False
    user: Annotated[str, Field(description="the name of a user")] = ""

    @field_validator("user")
    @classmethod
    def _exists(cls, user: str) -> str:
        if user:
            try:
                pwd.getpwnam(user)
            except (KeyError, ValueError):
                raise wrong(
                    f'names no user of this machine: `"{user}"`', hint="make the user, or leave it out"
                ) from None
        return user


class Settings(Table):
    """Everything `ecm.toml` says, with defaults where it says nothing. `source`: the file, None = built in."""

    relays: Annotated[dict[str, Relay], Field(validation_alias="relay", description="tables [relay.NAME]")] = Field(
        default_factory=dict
    )
    pools: Annotated[
        dict[str, Annotated[dict[str, Weight], Field(description="a table: relay = weight")]],
        Field(validation_alias="pool", description="tables [pool.NAME]"),
    ] = Field(default_factory=dict)
    retry: Annotated[Retry, Field(description="a table")] = Retry()
    budget: Annotated[Budget, Field(description="a table")] = Budget()
    ledger: Annotated[LedgerSettings, Field(description="a table")] = LedgerSettings()
    engine: Annotated[EngineSettings, Field(description="a table")] = EngineSettings()
    source: Annotated[Path | None, Field(strict=False)] = None

    @model_validator(mode="before")
    @classmethod
    def _name_relays(cls, given: Any) -> Any:
        """Give each relay the name of its table."""
        relays = given.get("relay", given.get("relays")) if isinstance(given, dict) else None
        if not isinstance(relays, dict):
            return given
        named = {name: _named(relay, name) for name, relay in relays.items()}
        return {**{key: value for key, value in given.items() if key not in ("relay", "relays")}, "relay": named}

    def weights(self, name: str) -> dict[str, int]:
        """Relays and weights behind a campaign's `relay = NAME`: one relay, or a pool.

        Raises EcmError `unknown_relay` naming what there is.
        """
        if name in self.relays:
            return {name: 1}
        if name in self.pools:
            return dict(self.pools[name])
        known = [*self.relays, *self.pools]
        match = nearest(name, known)
        if not known:
            hint = f"declare it in {self.source or 'ecm.toml'}: [relay.{name}] with host and port"
        elif match:
            hint = f'did you mean "{match}"?'
        else:
            hint = f"known relays and pools: {', '.join(known)}"
        raise EcmError("unknown_relay", f'no relay or pool has this name: `"{name}"`', field="relay", hint=hint)

    def to_public_map(self) -> dict[str, Any]:
        """The settings without secrets, for people and logs."""
        return self.to_map() | {"relays": {name: relay.to_public_map() for name, relay in self.relays.items()}}


def _named(relay: Any, name: str) -> Any:
    if isinstance(relay, Relay):
        return relay if relay.name else relay.model_copy(update={"name": name})
    return {**relay, "name": name} if isinstance(relay, dict) else relay


def load_settings(path: Path | None) -> Settings:
    """The settings in `path`; None = the built-in ones, which have no relay.

    Raises EcmError for the first problem in the file, with its place and a hint.
    """
    if path is None:
        return Settings()
    try:
        text = _read_text(path)
    except EcmError as error:
        raise EcmError(error.code, f"the settings: {error.message}", file=str(path), hint=error.hint) from error
    settings, errors = check_settings(text, path)
    if settings is None:
        raise errors[0]
    return settings


def check_settings(text: str, path: Path) -> tuple[Settings | None, list[EcmError]]:
    """The settings a text means, or None and all that is wrong with it in the order of the file.

    `path` names the text in errors; paths inside it are relative to its directory. Reads the files it names.
    """
    file = str(path)
    try:
        document = load_toml(text, file)
    except EcmError as error:
        return None, [error]
    # What is wrong between keys is looked for in the document as it was written, so that one wrong value does not
    # hide the next problem; the models then see a document with passwords in place.
    problems = [*_internal_keys(document), *_names(document), *_pools(document), *_files(document, path.parent)]
    try:
        settings = Settings.model_validate({**document, "source": path.absolute()})
    except ValidationError as error:
        settings = None
        problems += explain(error, Settings, _as_written)
    if problems:
        return None, in_file_order(problems, file, Places(text))
    return settings, []


def _as_written(path: KeyPath) -> KeyPath:
    """[retry.greylisting] is kept as retry.classes.greylisting; people wrote the former."""
    return (path[0], *path[2:]) if path[:2] == ("retry", "classes") else path


def _tables(document: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """The sub-tables of a top table; what is no table there is left to the models to refuse."""
    top = document.get(name)
    return {key: value for key, value in top.items() if isinstance(value, dict)} if isinstance(top, dict) else {}


def _internal_keys(document: dict[str, Any]) -> list[Problem]:
    """Take out, and report, keys that only our own maps may have."""
    tables: list[tuple[KeyPath, dict[str, Any], type[Table]]] = [((), document, Settings)]
    tables += [(("relay", name), table, Relay) for name, table in _tables(document, "relay").items()]
    if isinstance(document.get("retry"), dict):
        tables.append((("retry",), document["retry"], Retry))
    problems = []
    for path, table, model in tables:
        for key in [key for key in table if key in internal_keys(model)]:
            del table[key]
            problem = unknown_key((*path, key), Settings)
            if key == "password":
                problem = replace(problem, hint='a password stands in a file of its own: password_file = "pw"')
            problems.append(problem)
    return problems


def _names(document: dict[str, Any]) -> list[Problem]:
    """Names people chose, which become names of files and limits; and names of reply classes."""
    problems = []
    for top in ("relay", "pool"):
        for name in _tables(document, top):
            if not _NAME.fullmatch(name):
                text = f'not a name for a {top}: `"{name}"`'
                hint = "letters, digits, `.`, `_` and `-`, at most 64, a letter or digit first"
                problems.append(Problem((top, name), "invalid_value", text, hint, at_key=True))
    for name in _tables(document, "retry"):
        if name not in RETRY_CLASSES:
            match = nearest(name, RETRY_CLASSES)
            hint = f"did you mean `{match}`?" if match else f"known classes: {', '.join(RETRY_CLASSES)}"
            problems.append(Problem(("retry", name), "unknown_key", f"unknown key: `retry.{name}`", hint, at_key=True))
    relays = list(_tables(document, "relay"))
    if len(relays) > RELAYS_MAX:
        text = f"more than {RELAYS_MAX} relays: {len(relays)}"
        problems.append(Problem(("relay", relays[RELAYS_MAX]), "settings_invalid", text, at_key=True))
    return problems


def _pools(document: dict[str, Any]) -> list[Problem]:
    """A pool has relays, all of them declared, and no relay's name."""
    relays = document.get("relay")
    relays = list(relays) if isinstance(relays, dict) else []
    problems = []
    for pool, members in _tables(document, "pool").items():
        if not members:
            problems.append(
                Problem(
                    ("pool", pool), "settings_invalid", f"an empty pool: `{pool}`", "add relay = weight", at_key=True
                )
            )
        if pool in relays:
            text = f"a relay and a pool have the same name: `{pool}`"
            problems.append(Problem(("pool", pool), "settings_invalid", text, "rename one of them", at_key=True))
        for member in members:
            if member not in relays:
                match = nearest(member, relays)
                hint = f"did you mean `{match}`?" if match else f"declare it: [relay.{member}]"
                text = f"pool `{pool}` names a relay that is not declared: `{member}`"
                problems.append(Problem(("pool", pool, member), "unknown_relay", text, hint, at_key=True))
    return problems


def _files(document: dict[str, Any], base: Path) -> list[Problem]:
    """Read the passwords into the document and make the other paths in it absolute."""
    problems = []
    for name, table in _tables(document, "relay").items():
        at = ("relay", name)
        username, password_file, ca_file = (table.get(key) for key in ("username", "password_file", "ca_file"))
        if username and not password_file:
            text = f"`password_file` is missing in [relay.{name}], which has a username"
            problems.append(Problem((*at, "username"), "missing_key", text, 'add password_file = "pw"', at_key=True))
        if password_file and not username:
            text = f"`username` is missing in [relay.{name}], which has a password_file"
            problems.append(Problem((*at, "password_file"), "missing_key", text, 'add username = "me"', at_key=True))
        try:
            if isinstance(password_file, str) and password_file:
                key = "password_file"
                table["password"] = _password(base / password_file)
            if isinstance(ca_file, str) and ca_file:
                key = "ca_file"
                table[key] = str((base / ca_file).absolute())
                _read_text(Path(table[key]))
        except EcmError as error:
            problems.append(Problem((*at, key), error.code, f"`relay.{name}.{key}`: {error.message}", error.hint))
    return problems


def _password(path: Path) -> str:
    """The first line of a password file, which may have no other."""
    password = _read_text(path).removesuffix("\n").removesuffix("\r")
    if not password:
        raise EcmError("file_empty", f"an empty file: {path}", hint="write the password into it")
    if any(ord(character) < 32 for character in password):
        raise EcmError(
            "invalid_value", f"more than one line, or a control character: {path}", hint="one line, the password"
        )
    return password


def _read_text(path: Path) -> str:
    """The text of a small file. Raises EcmError without a place: the caller knows who named the file."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise EcmError("file_missing", f"no such file: {path}") from None
    except ValueError:  # a zero byte in the path
        raise EcmError("file_missing", f"not a path: {path}") from None
    except OSError as error:
        hint = f"let user `{_user()}` read it" if isinstance(error, PermissionError) else None
        raise EcmError("file_unreadable", f"cannot be read ({error.strerror}): {path}", hint=hint) from None
    if len(data) > FILE_BYTES_MAX:
        raise EcmError("file_unreadable", f"larger than {FILE_BYTES_MAX} bytes: {path}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise EcmError("not_utf8", f"not UTF-8 in line {line}: {path}", hint="save it as UTF-8") from None


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
