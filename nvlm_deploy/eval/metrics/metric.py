"""What a metric is: a function of one prediction, and the fields that it may read besides the references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from nvlm_deploy.errors import NvlmError

Extra: TypeAlias = Mapping[str, Any]
ScoreFunction: TypeAlias = Callable[[str, Sequence[str], Extra], float]
FieldKind: TypeAlias = Literal["text", "integer", "options"]

_KIND_NAMES = {
    "text": "a text",
    "integer": "an integer from 0 to 20",
    "options": "a list of 2 to 26 texts, or an object from letters to texts",
}


@dataclass(frozen=True, slots=True)
class Field:
    """A further field of a line that a metric reads if it is there."""

    name: str
    kind: FieldKind
    meaning: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. `score` gives 0 to 1, and raises NvlmError for references that it cannot use."""

    name: str
    line: str
    score: ScoreFunction
    fields: tuple[Field, ...] = ()
    min_references: int = 1

    def check(self, references: Sequence[str], extra: Extra) -> None:
        """Check a line's references and the fields that this metric reads, before any prediction is made.

        Raises:
            NvlmError: a field is of a wrong kind, or there are too few references; names the field.
        """
        if len(references) < self.min_references:
            raise NvlmError(
                f"references has {len(references)} texts; {self.name} needs at least {self.min_references}"
            )
        for field in self.fields:
            value = extra.get(field.name)
            if value is not None and not _is_kind(value, field.kind):
                raise NvlmError(f"{field.name} must be {_KIND_NAMES[field.kind]}, not {value!r}")
        self.score("", references, extra)


def _is_kind(value: Any, kind: FieldKind) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 20
    if kind == "text":
        return isinstance(value, str)
    texts = list(value.values()) if isinstance(value, dict) else value
    if isinstance(value, dict) and not all(isinstance(letter, str) and letter.strip() for letter in value):
        return False
    return isinstance(texts, list) and 2 <= len(texts) <= 26 and all(isinstance(text, str) for text in texts)
