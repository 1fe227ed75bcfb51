"""Fields that do not agree: what a manifest says, what was found instead, and where it was found.

Standard library only: the runtime uses it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nvlm_deploy.errors import NvlmError, VerificationError

_SHOWN_FIELDS = 8
_SHOWN_CHARACTERS = 120


class Absent:
    """The value of a field that is not there."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT = Absent()


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One field: its value, and what `witness` (`config.json has`, `this machine has`) has instead."""

    field: str
    value: object
    witness: str
    expected: object

    def __str__(self) -> str:
        return f"{self.field} is {_shown(self.value)}, and {self.witness} {_shown(self.expected)}"


def leaves(value: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a JSON value and what is in them; empty objects and lists are fields, too.

    A field is a path such as `tiler.max_tiles` or `files.0.size`.
    """
    if isinstance(value, dict) and value:
        parts: Iterable[tuple[str, Any]] = value.items()
    elif isinstance(value, list | tuple) and value:
        parts = ((str(index), item) for index, item in enumerate(value))
    else:
        yield field, value
        return
    for name, part in parts:
        yield from leaves(part, f"{field}.{name}" if field else name)


def differences(value: Any, expected: Any, witness: str, field: str = "") -> list[Mismatch]:
    """Compare two JSON values field by field; 1, 1.0 and true are three different values."""
    ours, theirs = dict(leaves(value, field)), dict(leaves(expected, field))
    names = [*ours, *(name for name in theirs if name not in ours)]
    pairs = ((name, ours.get(name, ABSENT), theirs.get(name, ABSENT)) for name in names)
    return [Mismatch(name, a, witness, b) for name, a, b in pairs if _text(a) != _text(b)]


def expect(section: Mapping[str, Any], wanted: Mapping[str, Any], witness: str, field: str) -> list[Mismatch]:
    """Compare those fields of a section that `wanted` names."""
    mine = {name: section.get(name, ABSENT) for name in wanted}
    return [
        found for name in wanted for found in differences(mine[name], wanted[name], witness, f"{field}{name}")
    ]


def refuse(
    found: Iterable[Mismatch], where: str, hint: str, error: type[NvlmError] = VerificationError
) -> None:
    """Raise `error` that names every field of `found`, if there is one; `where` is the manifest."""
    lines = [str(mismatch) for mismatch in found]
    if not lines:
        return
    more = f"; and {len(lines) - _SHOWN_FIELDS} more" if len(lines) > _SHOWN_FIELDS else ""
    raise error(f"{where}: {'; '.join(lines[:_SHOWN_FIELDS])}{more}", hint=hint)


def _text(value: object) -> str:
    return repr(value) if isinstance(value, Absent) else json.dumps(value, ensure_ascii=False)


def _shown(value: object) -> str:
    text = _text(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
