"""`--set key.path=value`: change one value of a YAML file before its schema reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvlm_deploy.config.yaml_file import parse_scalar
from nvlm_deploy.errors import UsageError


@dataclass(frozen=True, slots=True)
class Override:
    """One parsed `key.path=value`; `text` is what the user wrote."""

    text: str
    path: tuple[str, ...]
    value: Any

    @classmethod
    def parse(cls, text: str) -> Override:
        """Parse `key.path=value`; the value is read as YAML, so `64` is a number and `fp16` a text."""
        key, equals, value = text.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            raise UsageError(
                f"--set {text}: not of the form key.path=value",
                hint="for example --set weights.language.group_size=64",
            )
        try:
            return cls(text, path, parse_scalar(value))
        except ValueError as error:
            raise UsageError(f"--set {text}: the value is not valid YAML: {error}") from None

    def apply(self, data: dict[str, Any]) -> None:
        """Set the value in `data`, in place; a missing section on the way is made."""
        node: Any = data
        for depth, key in enumerate(self.path):
            last = depth == len(self.path) - 1
            if isinstance(node, list):
                key_in_node: int | str = self._list_index(node, depth)
            elif isinstance(node, dict):
                key_in_node = key
            else:
                above = ".".join(self.path[:depth])
                raise UsageError(f"--set {self.text}: {above} is the value {node!r} and has no keys")
            if last:
                node[key_in_node] = self.value
            elif isinstance(node, dict):
                node = node.setdefault(key_in_node, {})
            else:
                node = node[key_in_node]

    def _list_index(self, node: list[Any], depth: int) -> int:
        key = self.path[depth]
        if not key.isdecimal() or int(key) >= len(node):
            above = ".".join(self.path[:depth])
            raise UsageError(f"--set {self.text}: {above} is a list of {len(node)} and has no place '{key}'")
        return int(key)
