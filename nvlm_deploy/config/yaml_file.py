"""Strict YAML: a file that people write is one mapping, and no key in it is said twice."""

from __future__ import annotations

import copy
import functools
from typing import Any

import yaml

from nvlm_deploy.errors import NvlmError


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, which otherwise lets the last of two equal keys win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a plain name", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' is there twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def parse_mapping(text: str, source: str) -> dict[str, Any]:
    """Parse `text` as one YAML mapping; `source` is named in errors.

    Raises:
        NvlmError: a syntax error or a repeated key (with its line), or something else than a mapping.
    """
    return copy.deepcopy(_parsed(text, source))


@functools.lru_cache(maxsize=256)
def _parsed(text: str, source: str) -> dict[str, Any]:
    """The mapping, parsed once: plans read the whole catalog, and every target its bases."""
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise NvlmError(f"{source}{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise NvlmError(f"{source}: {error}") from None
    if not isinstance(data, dict):
        raise NvlmError(f"{source} must hold a mapping of keys to values")
    return data


def parse_scalar(text: str) -> Any:
    """Parse the right side of `key=value`; raises ValueError when it is no YAML value."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
