"""What the doctor says: lines, and what they come to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at: what was found, and what to do about it if it is not in order."""

    topic: str
    status: Status
    found: str
    advice: str = ""


def ok(topic: str, found: str) -> Line:
    return Line(topic, "ok", found)


def warning(topic: str, found: str, advice: str) -> Line:
    return Line(topic, "warning", found, advice)


def error(topic: str, found: str, advice: str) -> Line:
    return Line(topic, "error", found, advice)


@dataclass(frozen=True, slots=True)
class Report:
    """All lines, in the order of their topics."""

    lines: tuple[Line, ...]

    @classmethod
    def of(cls, *groups: Iterable[Line]) -> Report:
        """Join groups of lines."""
        return cls(tuple(line for group in groups for line in group))

    def count(self, status: Status) -> int:
        """How many lines have this status."""
        return sum(line.status == status for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "lines": [
                {"topic": line.topic, "status": line.status, "found": line.found, "advice": line.advice}
                for line in self.lines
            ],
        }
