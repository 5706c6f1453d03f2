"""What a launch is checked for: that the message can be made for everybody it would go to, and whether it should be.

Every row that lacks a name the templates use, or holds a line break in a text, is really composed; all others differ
only in text that templates cannot trip over. Warnings are for people and stop nothing.

Invariants
- Nothing is written.
- An error counts every recipient it concerns and names the first line.
"""

from __future__ import annotations

import difflib
import html
import re
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Final

import msgpack  # type: ignore[import-untyped, unused-ignore]

from actors.loader.recipients import Batch
from actors.message.compose import ComposeError, Composer, MissingField
from broker.contract.errors import EcmError

__all__ = ["Checks", "rate_warnings"]

BURST_S: Final = 0.05  # the least depth of a bucket that carries its rate
_URL: Final = re.compile(r"<(https://[^>]*)>")


@dataclass(slots=True)
class _Fault:
    """One thing wrong with a number of rows."""

    code: str
    message: str
    field: str | None
    hint: str
    first_line: int
    count: int = 0


class Checks:
    """Looks at every batch of an audience, then says what is wrong."""

    def __init__(self, spec: dict[str, Any], composer: Composer, file: str | None, date_s: int) -> None:
        """file: of the recipients, None for a list, whose rows have no lines."""
        self._spec = spec
        self._composer = composer
        self._file = file
        self._date_s = date_s
        self._faults: dict[tuple[str, str | None], _Fault] = {}
        self._samples: list[tuple[dict[str, Any], bytes]] = []
        self._messages: list[EmailMessage] = []  # composed of the samples, by `finish`
        self.wanted: frozenset[str] = composer.names

    def look(self, batch: Batch) -> None:
        """Compose the rows of the batch a template may trip over."""
        index = 0
        while len(self._samples) < 2 and index < len(batch.records):
            key = batch.keys[index].tobytes()
            if not self._samples or self._samples[0][1] != key:
                self._samples.append((_fields(batch.records[index]), key))
            index += 1
        for index in batch.odd:
            self._compose(batch.records[index], int(batch.lines[index]))

    def finish(self, names: list[str]) -> list[EcmError]:
        """What is wrong, the most recipients first. names: what the audience has, for hints."""
        faults = sorted(self._faults.values(), key=lambda fault: -fault.count)
        errors = [
            EcmError(
                fault.code,
                f"{fault.message}: {fault.count} recipient{'s' * (fault.count != 1)}",
                file=self._file,
                line=fault.first_line if self._file else None,
                field=fault.field,
                count=fault.count,
                hint=fault.hint if fault.code != "missing_field" else _meant(fault, names),
            )
            for fault in faults
        ]
        if not errors:
            errors += self._sample_errors()
        return errors

    def warnings(self) -> list[str]:
        """What may be meant so but seldom is. After `finish`."""
        found = rate_warnings(self._spec.get("rate") or {})
        url = self._spec.get("unsubscribe_url")
        if not url and self._spec.get("kind") != "transactional":
            found.append(
                "[unsubscribe] has no url: one-click List-Unsubscribe-Post is not sent, which Gmail and Yahoo ask for"
            )
        if not self._messages:
            return found
        message = self._messages[0]
        parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
        if not any(part.get_content_subtype() == "plain" for part in parts):
            found.append("no text part: filters and some readers want one (`text = ...`)")
        link = _link(message)
        if link and not any(_shows(part, link) for part in parts):
            found.append("the unsubscribe url is not used in the message: readers look for it there")
        return found

    def _compose(self, record: bytes, line: int) -> None:
        fields = _fields(record)
        try:
            self._composer.check(fields)
        except MissingField as error:
            hint = f'add the column, or write {{{{ {error.name} | default("...") }}}}'
            self._note("missing_field", f"no field `{error.name}`, which {error.where} uses", error.name, hint, line)
        except ComposeError as error:
            culprit = self._culprit(fields)
            self._note("bad_header", str(error), culprit, "remove line breaks from that column", line)

    def _note(self, code: str, message: str, field: str | None, hint: str, line: int) -> None:
        fault = self._faults.setdefault((code, field), _Fault(code, message, field, hint, line))
        fault.count += 1

    def _culprit(self, fields: dict[str, Any]) -> str | None:
        """The field whose line breaks make the message impossible, if it is one alone."""
        for name in sorted(self._composer.names):
            value = fields.get(name)
            if isinstance(value, str) and ("\n" in value or "\r" in value):
                try:
                    self._composer.check({**fields, name: " ".join(value.split())})
                except ComposeError:
                    continue
                return name
        return None

    def _sample_errors(self) -> list[EcmError]:
        """Faults that any two recipients show. One whom no message can be made for stops nobody else's."""
        failed: list[ComposeError] = []
        for fields, key in self._samples:
            try:
                data = self._composer.compose(fields, key, self._date_s).data
            except ComposeError as error:
                failed.append(error)
            else:
                self._messages.append(message_from_bytes(data, _class=EmailMessage, policy=policy.SMTPUTF8))
        if failed and not self._messages:
            return [EcmError("invalid_value", f"the message cannot be made: {failed[0]}", file=self._file)]
        links = [_link(message) for message in self._messages]
        if len(links) == 2 and links[0] and links[0] == links[1]:
            return [
                EcmError(
                    "invalid_value",
                    "the unsubscribe url is the same for every recipient",
                    field="unsubscribe.url",
                    hint='write the address into it: url = "https://example.com/u?e={{ email | urlencode }}"',
                )
            ]
        return []


def rate_warnings(rate: dict[str, Any]) -> list[str]:
    """What the limits of a campaign's [rate] cost it without need."""
    per_second = float(rate.get("per_second") or 0)
    burst = rate.get("burst")
    carries = max(1, round(per_second * BURST_S + 0.499))
    if per_second and burst and burst < carries:
        return [f"burst = {burst} costs rate: {per_second:g} a second needs {carries} (or 0: the engine chooses)"]
    return []


def _meant(fault: _Fault, names: list[str]) -> str:
    """The hint for a field that is missing: the nearest one there is, or the two ways out."""
    near = difflib.get_close_matches(fault.field or "", names, 1)
    return f"did you mean `{near[0]}`?" if near and near[0] != fault.field else fault.hint


def _fields(record: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = msgpack.unpackb(record)
    return fields


def _link(message: EmailMessage) -> str | None:
    """The https address of List-Unsubscribe."""
    found = _URL.search(re.sub(r"\s+", "", str(message.get("List-Unsubscribe", ""))))
    return found.group(1) if found else None


def _shows(part: Any, link: str) -> bool:
    content = part.get_content()
    return link in content or html.escape(link) in content or html.escape(link, quote=False) in content
