"""Turn a schema's refusal into a sentence that names the file, the key and a way out."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from nvlm_deploy.config.overrides import Override
from nvlm_deploy.errors import NvlmError, UsageError, did_you_mean

_Location = tuple[int | str, ...]


def explain(
    error: ValidationError, schema: type[BaseModel], source: str, overrides: Sequence[Override] = ()
) -> NvlmError:
    """Return the error to raise for what pydantic found in `source`.

    It is a UsageError when an override is to blame. One problem becomes the message: an unknown key
    if there is one, because a misspelt key is a missing one, too.
    """
    problems = error.errors(include_url=False)
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    location: _Location = first["loc"]
    culprit = next((o for o in overrides if _touches(o.path, location)), None)
    where = f"--set {culprit.text}" if culprit else source
    message, hint = _sentence(first["type"], first["msg"], location, first["input"], schema)
    if error.error_count() > 1:
        message += f" (and {error.error_count() - 1} more)"
    return (UsageError if culprit else NvlmError)(f"{where}: {message}", hint=hint)


def _sentence(
    kind: str, text: str, location: _Location, value: object, schema: type[BaseModel]
) -> tuple[str, str | None]:
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        known = _keys_at(schema, location[:-1])
        return f"the key '{key}' is not known", did_you_mean(str(location[-1]), known)
    if kind == "missing":
        return f"the key '{key}' is missing", None
    text = text.removeprefix("Value error, ")
    if not location:
        return text, None
    return f"{key} is {value!r}: {text[:1].lower()}{text[1:]}", None


def _touches(path: tuple[str, ...], location: _Location) -> bool:
    """Whether a value set at `path` lies above or below `location`."""
    where = tuple(str(part) for part in location)
    shared = min(len(path), len(where))
    return shared > 0 and path[:shared] == where[:shared]


def _keys_at(schema: type[BaseModel], location: _Location) -> tuple[str, ...]:
    """Return the keys that `schema` knows at `location`."""
    annotation: Any = schema
    for part in location:
        models = _models_in(annotation)
        if isinstance(part, str) and models:
            fields = models[0].model_fields
            annotation = fields[part].annotation if part in fields else None
    models = _models_in(annotation)
    return tuple(models[0].model_fields) if models else ()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the schemas inside an annotation such as `Section`, `Section | None` or `list[Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
