"""Records of JSON files that others wrote, with errors that name file, record and field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.errors import NvlmError, did_you_mean


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object; `where` is what errors call it: `FILE:LINE`, or `FILE: data[3]`."""

    raw: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: Any, where: str) -> Record:
        """Raises NvlmError: `value` is no JSON object."""
        if not isinstance(value, dict):
            raise NvlmError(f"{where} is a {type(value).__name__}, not a JSON object")
        return cls(value, where)

    def fail(self, key: str, problem: str) -> NvlmError:
        """The error for a field."""
        return NvlmError(f"{self.where}: {key} {problem}")

    def get(self, key: str) -> Any:
        """A field's value.

        Raises:
            NvlmError: the record has no such field.
        """
        if key not in self.raw:
            raise NvlmError(f"{self.where} has no field '{key}'", hint=did_you_mean(key, map(str, self.raw)))
        return self.raw[key]

    def text(self, key: str) -> str:
        """A field that is a text."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.fail(key, f"must be a text, not {value!r}")
        return value

    def name(self, key: str) -> str:
        """A field that is a text or an integer, as a text: an id."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self.fail(key, f"must be a text or an integer, not {value!r}")
        return str(value)

    def integer(self, key: str) -> int:
        """A field that is an integer."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, f"must be an integer, not {value!r}")
        return value

    def texts(self, key: str) -> list[str]:
        """A field that is a list of texts, at least one."""
        value = self.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
            raise self.fail(key, f"must be a list of texts, at least one, not {value!r}")
        return value

    def items(self, key: str) -> list[Any]:
        """A field that is a list."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.fail(key, f"must be a list, not {type(value).__name__}")
        return value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        NvlmError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise NvlmError(f"{path} cannot be read: {reason}") from None


def read_json_list(path: Path) -> list[Record]:
    """Read a JSON file that holds a list of objects."""
    value = read_json(path)
    if not isinstance(value, list):
        raise NvlmError(f"{path} must hold a list, not a {type(value).__name__}")
    return [Record.of(item, f"{path}: [{i}]") for i, item in enumerate(value)]


def read_json_lines(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSONL file; empty lines do not count.

    Raises:
        NvlmError: the file cannot be read, or a line is no JSON object.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield parse_line(line, f"{path}:{number}")
    except OSError as error:
        raise NvlmError(f"{path} cannot be read: {error.strerror}") from None


def parse_line(line: bytes, where: str) -> Record:
    """One line of a JSONL file.

    Raises:
        NvlmError: it is no JSON object.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise NvlmError(f"{where} is not valid JSON: {error}") from None
    return Record.of(value, where)
