"""Sections of YAML files, and lists of things that each say their `kind`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from nvlm_deploy.errors import did_you_mean


class Section(BaseModel):
    """A mapping in which every key is known and has the very type that is said."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def read_by_kind(value: Any, schemas: Mapping[str, type[Section]]) -> Any:
    """Read a source by its `kind`, with the schema of that kind.

    Pydantic's own tagged union puts the tag into the location of every error, where no key of the
    file has it, and cannot tell which keys the chosen kind knows.
    """
    if isinstance(value, BaseModel):
        return value
    if not isinstance(value, dict):
        kinds = ", ".join(schemas)
        raise ValueError(f"a source is a mapping with a kind ({kinds}) and the keys of that kind")
    kind = value.get("kind")
    if kind is None:
        raise _refusal("missing", ("kind",), value)
    if kind not in schemas:
        hint = did_you_mean(str(kind), schemas)
        raise _refusal(
            PydanticCustomError("unknown_kind", "there is no such kind; {hint}", {"hint": hint}),
            ("kind",),
            kind,
        )
    schema = schemas[kind]
    for key in value:
        if key not in schema.model_fields:
            hint = did_you_mean(key, schema.model_fields)
            text = "the kind '{kind}' has no such key; {hint}"
            problem = PydanticCustomError("unknown_key", text, {"kind": kind, "hint": hint})
            raise _refusal(problem, (key,), value[key])
    return schema.model_validate(value)


def _refusal(problem: str | PydanticCustomError, key: tuple[str, ...], value: Any) -> ValidationError:
    details = InitErrorDetails(type=problem, loc=key, input=value)
    return ValidationError.from_exception_data("source", [details])
