"""The templates of one message, rendered by MiniJinja.

May not: give a template anything but text fields (no loader, no files, no clock); know MIME or SMTP.

Invariants
- HTML is escaped in the HTML body and nowhere else: `<` in a subject stays `<`.
- A field that a recipient lacks is never printed as nothing: MissingField. It may be asked for (`{% if x %}`,
  `x is defined`, `x | default("...")`).
- A template ends: `FUEL` bounds its instructions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minijinja import Environment, TemplateError

from actors.message.mime import ComposeError
from broker.contract.errors import EcmError

__all__ = ["FUEL", "FUNCTIONS", "MissingField", "Slot", "Templates", "has_tags", "plain_slashes", "sample_contexts"]

FUEL = 1_000_000  # instructions: some 30 ms; a long message takes a thousand
FUNCTIONS = frozenset(("range", "namespace"))  # all that templates can call by name
_REMOVED_GLOBALS = ("cycler", "debug", "dict", "joiner")  # likelier columns than functions; debug prints the context
_TAGS = re.compile(r"\{[{%#]").search
_SELF = re.compile(r"\{[{%][^{}]*\bself\b").search
_SLICE = re.compile(r"\[([^\[\]:]*):([^\[\]:]*)(?::([^\[\]:]*))?\]").sub
_UNDEFINED = re.compile(r"`([^`]+)` is undefined").search
# Filters that MiniJinja lets print nothing (or `null`) for a field that is not there.
_SWALLOWING = ("e", "escape", "indent", "pprint", "tojson", "truncate", "urlencode", "wordwrap")
_SWALLOWED = re.compile(r"([A-Za-z_]\w*)[\w.]*\s*\|\s*(\w+)").finditer
# Errors of the template itself, whatever the fields hold.
_AUTHORS_ERRORS = frozenset(
    ("UnknownFilter", "UnknownFunction", "UnknownTest", "TemplateNotFound", "TooManyArguments", "MissingArgument")
)
_HINT = 'a template is `{{ field }}`, `{% if field %} ... {% endif %}`, `{{ field | default("...") }}`'


class MissingField(ComposeError):  # noqa: N818  its name is part of the contract between rooms
    """A template prints a field that this recipient lacks.

    name    the field, as the template writes it
    where   the template: its file, or its key in the campaign file
    """

    def __init__(self, name: str, where: str) -> None:
        super().__init__(f"no field `{name}`, which {where} uses")
        self.name = name
        self.where = where


@dataclass(frozen=True, slots=True)
class Slot:
    """One template of a message.

    key      what it is, as the campaign file says it: subject, html, unsubscribe.url, headers.X-Tag, ...
    source   the template
    escape   whether what it prints is HTML
    file     the file it was read from, None for one written in the campaign file
    """

    key: str
    source: str
    escape: bool = False
    file: str | None = None

    @property
    def where(self) -> str:
        """How an error names it."""
        return self.file or self.key


class _SwallowedError(Exception):
    """A filter was given nothing."""


class Templates:
    """The templates of one campaign, compiled.

    names   every field that some template refers to, and of FUNCTIONS those it uses

    Raises EcmError template_syntax with file, line and column.
    """

    def __init__(self, slots: Iterable[Slot], campaign_file: str | None = None) -> None:
        self._slots: dict[str, Slot] = {}
        self._campaign_file = campaign_file
        self._lenient = _environment()
        self._strict = _environment()
        for name in _SWALLOWING:
            self._strict.add_filter(name, _refusing(name, self._lenient))
        for slot in slots:
            self.add(slot)
        self.names = self.names_of(self._slots)

    def add(self, slot: Slot) -> None:
        """Compile one more template, whose fields are those of the others."""
        self._slots[slot.key] = slot
        for environment in (self._lenient, self._strict):
            try:
                environment.add_template(_template_name(slot), slot.source)
            except TemplateError as error:
                raise self._syntax(slot, error) from None

    def names_of(self, keys: Iterable[str]) -> frozenset[str]:
        """Every field that some of the templates refer to."""
        names: set[str] = set()
        for source in (self._slots[key].source for key in keys):
            names |= self._lenient.undeclared_variables_in_str(_SLICE(_as_items, source))
            if _SELF(source):  # which MiniJinja leaves out; a column of that name is one like any other
                names.add("self")
        return frozenset(names)

    def render(self, key: str, context: Mapping[str, Any], complete: bool) -> str:
        """Render one template.

        context    the fields by name
        complete   every name of `names` is in it, so that no filter can be given nothing

        Raises MissingField, or ComposeError for what goes wrong otherwise.
        """
        slot = self._slots[key]
        environment = self._lenient if complete else self._strict
        try:
            return environment.render_template(_template_name(slot), **context)
        except TemplateError as error:
            raise _runtime(slot, error) from None
        except _SwallowedError as error:
            raise MissingField(_swallowed_name(slot.source, context, str(error)), slot.where) from None
        except UnicodeEncodeError:
            raise ComposeError(f"a field is not Unicode, in {slot.where}") from None

    def probe(self, contexts: Iterable[Mapping[str, Any]]) -> None:
        """Render every template with each context, to find what is wrong with the template whatever the fields hold.

        Raises EcmError template_syntax for an unknown filter, function or test, an include, or wrong arguments.
        """
        for context in contexts:
            for slot in self._slots.values():
                try:
                    self._lenient.render_template(_template_name(slot), **context)
                except TemplateError as error:
                    if error.kind in _AUTHORS_ERRORS:
                        raise self._syntax(slot, error) from None

    def _syntax(self, slot: Slot, error: TemplateError) -> EcmError:
        line, column = _place(slot.source, error)
        if slot.file is None:  # a value inside the campaign file: its own lines are not the file's
            line = column = None
        return EcmError(
            "template_syntax",
            f"{slot.where}: {_detail(error)}" if slot.file is None else _detail(error),
            file=slot.file or self._campaign_file,
            line=line,
            column=column,
            field=slot.key,
            hint=_HINT,
        )


def plain_slashes(html: str) -> str:
    """HTML with `/` for the entity that MiniJinja's escaping makes of it.

    It means the same wherever entities mean anything, is shorter, and leaves links that people and programs can find.
    """
    return html.replace("&#x2f;", "/")


def has_tags(source: str) -> bool:
    """Whether a text is a template at all."""
    return _TAGS(source) is not None


def sample_contexts(names: Iterable[str]) -> list[dict[str, str]]:
    """Made-up fields that take templates through different branches and hold what encoders get wrong."""
    names = sorted(names)
    hard = "Zoë <&\"'> =3D é=\n . \tx "
    plain = {name: f"value {i}" for i, name in enumerate(names)}
    return [
        {name: f"{hard}{i} " for i, name in enumerate(names)},
        dict.fromkeys(names, ""),
        {name: str(7 + i) for i, name in enumerate(names)},
        plain,
        {name: ("=?" + name + " 😀") * 40 if i % 2 else "" for i, name in enumerate(names)},
        {name: "" if i % 2 else "long and plain = " * 80 for i, name in enumerate(names)},
        *({name: value for name, value in plain.items() if name != missing} for missing in names),
    ]


def _as_items(found: re.Match[str]) -> str:
    """`[a:b]` as `[a][b]`: MiniJinja does not look into slices when it tells the names of a template."""
    return "".join(f"[{part.strip() or 0}]" for part in found.groups(default=""))


def _environment() -> Environment:
    environment = Environment(keep_trailing_newline=True, fuel=FUEL)
    environment.undefined_behavior = "semi_strict"  # type: ignore[assignment]  # its annotations do not know it
    for name in _REMOVED_GLOBALS:
        environment.remove_global(name)
    return environment


def _refusing(name: str, plain: Environment) -> Callable[..., Any]:
    """MiniJinja's own filter, but refusing a field that is not there (it arrives as None)."""

    def apply(value: Any, *args: Any, **kwargs: Any) -> Any:
        if value is None:
            raise _SwallowedError(name)
        given = [f"args[{i}]" for i in range(len(args))] + [f"{key}=kwargs.{key}" for key in kwargs]
        return plain.eval_expr(f"value|{name}({', '.join(given)})", value=value, args=args, kwargs=kwargs)

    return apply


def _template_name(slot: Slot) -> str:
    return f"{slot.key}.html" if slot.escape else f"{slot.key}.txt"  # MiniJinja escapes by the ending


def _runtime(slot: Slot, error: TemplateError) -> ComposeError:
    found = _UNDEFINED(error.detail or "")  # of kind UndefinedError, or InvalidOperation: `x + 1`
    if found:
        return MissingField(found[1], slot.where)
    if error.kind == "OutOfFuel":
        return ComposeError(f"{slot.where}: the template runs too long")
    return ComposeError(f"{slot.where}:{error.line}: {_detail(error)}")


def _swallowed_name(source: str, context: Mapping[str, Any], filter_name: str) -> str:
    """The first missing field that stands before the filter; the filter's name if it is not plain to see."""
    for found in _SWALLOWED(source):
        if found[2] == filter_name and found[1] not in context:
            return found[1]
    return f"... | {filter_name}"


def _detail(error: TemplateError) -> str:
    return (error.detail or error.message).splitlines()[0]


def _place(source: str, error: TemplateError) -> tuple[int | None, int | None]:
    """Line and column of an error, from 1; the column in characters (MiniJinja counts bytes)."""
    if error.range is None:
        return error.line, None
    before = source.encode()[: error.range[0]].decode("utf-8", "replace")
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
