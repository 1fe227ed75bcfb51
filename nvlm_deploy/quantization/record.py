"""`quantization.json`: what a quantized checkpoint was made of."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.config.catalog import validate
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.errors import NvlmError

RECORD_NAME = "quantization.json"
_KEYS = ("checkpoint_fingerprint", "recipe", "calibration", "tool_versions")


@dataclass(frozen=True, slots=True)
class QuantizationRecord:
    """The parsed file; `where` names it in errors."""

    raw: dict[str, Any]
    where: str

    @classmethod
    def read(cls, checkpoint: Path) -> QuantizationRecord:
        """Read the record of a quantized checkpoint.

        Raises:
            NvlmError: there is none, or it lacks what an engine is built by.
        """
        path = checkpoint / RECORD_NAME
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NvlmError(
                f"{checkpoint} is quantized, but has no {RECORD_NAME} that says by which recipe",
                hint="quantize the released checkpoint with nvlm-build quantize",
            ) from None
        except (OSError, ValueError) as error:
            raise NvlmError(f"{path} cannot be read: {error}") from None
        missing = [key for key in _KEYS if not isinstance(raw, dict) or key not in raw]
        if missing:
            raise NvlmError(f"{path}: the key '{missing[0]}' is missing")
        return cls(raw, str(path))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the released checkpoint."""
        return str(self.raw["checkpoint_fingerprint"])

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe, with `key.path=value` set in it.

        Raises:
            UsageError: the schema refuses an override.
            NvlmError: the recipe was written by another version, whose schema was another.
        """
        return validate(copy.deepcopy(self.raw["recipe"]), Recipe, self.where, overrides)

    def summary(self) -> dict[str, Any]:
        """What a bundle's manifest keeps of it."""
        return {key: self.raw[key] for key in ("calibration", "tool_versions")}
