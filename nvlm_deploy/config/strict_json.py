"""Read JSON into frozen dataclasses, with nothing missing, nothing unknown and nothing of a wrong type.

Standard library only: the runtime uses it.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from nvlm_deploy.errors import NvlmError, did_you_mean

Record = TypeVar("Record")


def from_json(record: type[Record], value: Any, source: str, key: str = "") -> Record:
    """Make the dataclass `record` of a parsed JSON object.

    Fields may be str, int, float, bool, Literal, dict, dataclasses, tuples of these, and `| None` of these.

    Raises:
        NvlmError: a key is missing or unknown or its value has another type; names source and key.
    """
    _expect(value, dict, source, key)
    hints = typing.get_type_hints(record)
    names = [field.name for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in names:
            hint = did_you_mean(name, names)
            raise NvlmError(f"{source}: the key '{prefix}{name}' is not known", hint=hint)
    for name in names:
        if name not in value:
            raise NvlmError(f"{source}: the key '{prefix}{name}' is missing")
    return record(**{name: _convert(hints[name], value[name], source, prefix + name) for name in names})


def to_json(record: Any) -> dict[str, Any]:
    """Return `record` as what `from_json` reads."""
    return dataclasses.asdict(record)


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        return _convert(hint, value, source, key)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, source, key)
    if origin is tuple:
        _expect(value, list, source, key)
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, each, source, f"{key}.{i}") for i, each in enumerate(value))
    if origin is dict:
        _expect(value, dict, source, key)
        item = typing.get_args(hint)[1]
        return {name: _convert(item, each, source, f"{key}.{name}") for name, each in value.items()}
    if origin is typing.Literal:
        known = typing.get_args(hint)
        if value not in known:
            raise NvlmError(f"{source}: {key} is {value!r}", hint=did_you_mean(str(value), map(str, known)))
        return value
    if hint is Any:
        return value
    _expect(value, hint, source, key)
    return value


_JSON_NAMES = {dict: "an object", list: "a list", str: "a text", int: "an integer", bool: "true or false"}


def _expect(value: Any, kind: type, source: str, key: str) -> None:
    # True is an int in Python and no number in JSON.
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        where = f"{source}: {key}" if key else source
        raise NvlmError(f"{where} must be {_JSON_NAMES.get(kind, 'a number')}, not {value!r}")


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        NvlmError: it cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NvlmError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise NvlmError(f"{path} must hold a JSON object")
    return value
