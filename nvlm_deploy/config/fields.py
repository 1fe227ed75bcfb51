"""One JSON object of a model's `config.json`, read field by field with errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from nvlm_deploy.errors import NvlmError

Choice = TypeVar("Choice", bound=str)


class ConfigFields:
    """The object `raw`; `prefix` is where it stands in the file `source`."""

    def __init__(self, raw: Mapping[str, Any], source: str, prefix: str) -> None:
        self.raw, self.source, self.prefix = raw, source, prefix

    def fail(self, key: str, value: object, supported: str) -> None:
        raise NvlmError(
            f"{self.source}: {self.prefix}{key} is {value!r}; supported: {supported}",
            hint="nvlm-deploy reads NVLM checkpoints in the layout of nvidia/NVLM-D-72B",
        )

    def get(self, key: str) -> Any:
        if key not in self.raw:
            raise NvlmError(f"{self.source}: the field {self.prefix}{key} is missing")
        return self.raw[key]

    def expect(self, key: str, *supported: object) -> None:
        value = self.get(key)
        if value not in supported:
            self.fail(key, value, " or ".join(repr(s) for s in supported))

    def expect_default(self, key: str, supported: object) -> None:
        """A field that may be left out, and has one value if it is there."""
        if key in self.raw:
            self.expect(key, supported)

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, value, "true or false")
        return bool(value)

    def choice(self, key: str, supported: tuple[Choice, ...], default: Choice) -> Choice:
        value = self.raw.get(key, default)
        if value not in supported:
            self.fail(key, value, " or ".join(repr(s) for s in supported))
        return cast("Choice", value)

    def integer(self, key: str, minimum: int = 1, default: int | None = None) -> int:
        value = self.get(key) if default is None else self.raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            self.fail(key, value, f"an integer of at least {minimum}")
        return int(value)

    def number(self, key: str) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            self.fail(key, value, "a positive number")
        return float(value)

    def section(self, key: str) -> ConfigFields:
        value = self.get(key)
        if not isinstance(value, dict):
            self.fail(key, value, "a JSON object")
        return ConfigFields(value, self.source, f"{self.prefix}{key}.")

    def first_architecture(self, supported: Mapping[str, object]) -> str:
        value = self.get("architectures")
        if not isinstance(value, list) or not value or value[0] not in supported:
            self.fail("architectures", value, " or ".join(f"[{s!r}]" for s in supported))
        return str(value[0])
