"""Problems with what a user wrote: from a failed validation to one clear line with its place and a hint.

May import pydantic; knows no setting and no campaign. A model's own declaration is the source of its messages:
`Field(description=...)` of a field says what it must be ("a whole number from 1 to 65535"), `examples` what to
write where it is missing. A field without a description is one that people do not write.

Invariants
- Every error of pydantic becomes exactly one `Problem`; none is shown in pydantic's own words.
- A value is quoted, shortened, from what the user wrote; secrets never stand in the files checked here.
"""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from typing_extensions import is_typeddict

from broker.contract.errors import EcmError
from broker.contract.tomlfile import KeyPath, Places

__all__ = [
    "Problem",
    "Table",
    "dotted",
    "explain",
    "in_file_order",
    "internal_keys",
    "nearest",
    "shown",
    "unknown_key",
    "wrong",
]

VALUE_CHARACTERS_MAX = 60


class Table(BaseModel):
    """A TOML table: frozen, no unknown keys, no conversions (TOML has types; "587" is not 587)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_by_name=True, validate_by_alias=True)

    def to_map(self) -> dict[str, Any]:
        """The table as plain values that msgpack and JSON can carry, secrets included."""
        return self.model_dump(mode="json")

    @classmethod
    def from_map(cls, m: Mapping[str, Any]) -> Self:
        """The table of a map made by `to_map`."""
        return cls.model_validate(dict(m))


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, at `path` in the document; `at_key` points at the key instead of its value."""

    path: KeyPath
    code: str
    message: str
    hint: str | None = None
    at_key: bool = False

    def place(self, places: Places) -> tuple[int, int]:
        """Line and column to point at."""
        return places.key(self.path) if self.at_key else places.value(self.path)

    def error(self, file: str, places: Places) -> EcmError:
        """The problem as the error a user sees."""
        line, column = self.place(places)
        field = dotted(self.path) or None
        return EcmError(self.code, self.message, file=file, line=line, column=column, field=field, hint=self.hint)


def in_file_order(problems: Iterable[Problem], file: str, places: Places) -> list[EcmError]:
    """The problems as errors, the one that stands first in the file first.

    What is missing stands nowhere and comes last: often a misspelt key is the cause of it.
    """
    return [
        problem.error(file, places)
        for problem in sorted(problems, key=lambda p: (p.path not in places, p.place(places)))
    ]


def wrong(text: str, *, hint: str | None = None, code: str = "invalid_value") -> PydanticCustomError:
    """What a validator raises: `text` goes on after the name of the field ("holds a line break")."""
    return PydanticCustomError("ecm", "{text}", {"text": text, "hint": hint, "code": code})


def explain(
    error: ValidationError, model: type[BaseModel], written: Callable[[KeyPath], KeyPath] = lambda path: path
) -> list[Problem]:
    """The problems behind pydantic's errors for `model`.

    `written` turns a path in the model into the one people wrote, where the two differ.
    """
    return [_problem(detail, model, written(detail["loc"])) for detail in error.errors(include_url=False)]


def _problem(detail: Any, model: type[BaseModel], path: KeyPath) -> Problem:
    name, kind, context = dotted(path), detail["type"], detail.get("ctx", {})
    if kind == "ecm":
        return Problem(path, context["code"], f"`{name}` {context['text']}", context["hint"])
    if kind == "extra_forbidden":
        return unknown_key(path, model, _known_keys(model, detail["loc"][:-1]))
    declared = _declared(model, detail["loc"])
    if kind == "missing":
        where = f" in [{dotted(path[:-1])}]" if len(path) > 1 else ""
        hint = f"add {path[-1]} = {_toml(declared.examples[0])}" if declared and declared.examples else None
        return Problem(path, "missing_key", f"`{path[-1]}` is missing{where}", hint, at_key=True)
    value = detail["input"]
    must = declared.description if declared and declared.description else _KINDS.get(kind, "of another kind")
    return Problem(path, "invalid_value", f"`{name}` must be {must}: {shown(value)}", _value_hint(value, kind, context))


_KINDS = {
    "model_type": "a table",
    "dict_type": "a table",
    "model_attributes_type": "a table",
    "list_type": "a list: [...]",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
}


def _value_hint(value: Any, kind: str, context: dict[str, Any]) -> str | None:
    if kind == "literal_error" and isinstance(value, str):
        known = str(context.get("expected", "")).replace(" or ", ", ").replace("'", "").split(", ")
        match = nearest(value.strip().lower(), known)
        return f'did you mean "{match}"?' if match else None
    if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type"):
        plain = value.strip().lower()
        if plain in ("true", "false") or plain.lstrip("-").replace(".", "", 1).isdigit():
            return f"write it without quotes: {plain}"
    return None


def unknown_key(path: KeyPath, model: type[BaseModel], known: list[str] | None = None) -> Problem:
    """A key that `model` does not have at `path`, with the nearest one it has (of `known`, if given)."""
    key, known = str(path[-1]), _known_keys(model, path[:-1]) if known is None else known
    match = nearest(key, known)
    top = _known_keys(model, ())
    if match is None and len(path) > 1 and key in top:
        # TOML's trap: whatever follows a [table] belongs to it, up to the next one.
        hint = f"`{key}` belongs before the first [table] of the file"
    elif match is not None:
        hint = f"did you mean `{match}`?"
    else:
        hint = f"known keys: {', '.join(known)}"
    return Problem(path, "unknown_key", f"unknown key: `{dotted(path)}`", hint, at_key=True)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def dotted(path: KeyPath) -> str:
    """A path as people write it: `relay.default.port`."""
    return ".".join(str(part) for part in path)


def shown(value: Any) -> str:
    """A value as TOML would write it, between backticks, shortened."""
    text = _toml(value)
    if len(text) > VALUE_CHARACTERS_MAX:
        text = f"{text[: VALUE_CHARACTERS_MAX - 3]}..."
    return f"`{text}`"


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def internal_keys(model: type[BaseModel]) -> set[str]:
    """Names by which a map of ours may say something that people may not write in TOML."""
    written = {_key_of(name, field) for name, field in model.model_fields.items() if field.description is not None}
    return set(model.model_fields) - written


def _known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    kind: Any = model
    for part in path:
        kind = _below(kind, part)
    kind = _bare(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [_key_of(name, field) for name, field in kind.model_fields.items() if field.description is not None]
    if is_typeddict(kind):
        return list(kind.__annotations__)
    return []


def _key_of(name: str, field: FieldInfo) -> str:
    return field.validation_alias if isinstance(field.validation_alias, str) else name


def _declared(model: type[BaseModel], path: KeyPath) -> FieldInfo | None:
    """The `Field` that describes what stands at `path`."""
    kind: Any = model
    found: FieldInfo | None = None
    for part in path:
        bare = _bare(kind)
        found = None
        if isinstance(bare, type) and issubclass(bare, BaseModel):
            found = next((f for name, f in bare.model_fields.items() if part in (name, f.validation_alias)), None)
        kind = _below(kind, part)
        if found is None or found.description is None:
            notes = getattr(kind, "__metadata__", ())
            found = next((note for note in notes if isinstance(note, FieldInfo)), found)
    return found


def _below(kind: Any, part: str | int) -> Any:
    """The annotation of what stands under key `part` of a value annotated `kind`, or None."""
    kind = _bare(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return next((f.annotation for name, f in kind.model_fields.items() if part in (name, f.validation_alias)), None)
    if is_typeddict(kind):
        return typing.get_type_hints(kind, include_extras=True).get(str(part))
    arguments = typing.get_args(kind)
    return arguments[-1] if arguments else None


def _bare(kind: Any) -> Any:
    """`kind` without Annotated and without `| None`."""
    while True:
        if hasattr(kind, "__metadata__"):
            kind = kind.__origin__
        elif typing.get_origin(kind) in (typing.Union, types.UnionType):
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        else:
            return kind
