"""How a loader understands the quantization of a checkpoint: which module is stored in which format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.export.serving.loaders import Loader
from nvlm_deploy.quantization.unified import QUANT_CONFIG_NAME

MIXED = "MIXED_PRECISION"
_TOWER = ("vision_model", "vision_tower", "visual")


@dataclass(frozen=True, slots=True)
class Understanding:
    """A loader's own reading of a checkpoint's quantization; without any, all modules are in floats."""

    loader: Loader
    config: Mapping[str, Any] | None

    @property
    def fp8_cache(self) -> bool:
        """Whether keys and values come with scales."""
        return self.config is not None and self.config.get("kv_cache_quant_algo") == "FP8"

    def format_of(self, module: str) -> tuple[str, int] | None:
        """Algorithm and group size of a module's matrix; None for floats."""
        if self.config is None or self._excluded(module):
            return None
        # vLLM has these names in its source: nothing below them is ever quantized.
        if self.loader.scope == "whole" and any(name in module for name in _TOWER):
            return None
        entry = self.config
        if self.config["quant_algo"] == MIXED:
            layers: Mapping[str, Mapping[str, Any]] = self.config.get("quantized_layers") or {}
            if module not in layers:
                return None
            entry = layers[module]
        return str(entry["quant_algo"]), int(entry.get("group_size") or 0)

    def _excluded(self, module: str) -> bool:
        patterns = (self.config or {}).get("exclude_modules") or []
        part = "part" in self.loader.excludes and any(pattern in module for pattern in patterns)
        glob = "glob" in self.loader.excludes and any(fnmatchcase(module, pattern) for pattern in patterns)
        return part or glob


def read_quantization(directory: Path) -> Mapping[str, Any] | None:
    """The section `quantization` of hf_quant_config.json; None if there is no such file.

    Raises:
        NvlmError: it is no JSON, or has no algorithm.
    """
    path = directory / QUANT_CONFIG_NAME
    try:
        section = json.loads(path.read_text(encoding="utf-8"))["quantization"]
        section["quant_algo"].upper()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NvlmError(f"{path}: there is no quantization.quant_algo ({error})") from None
    return dict(section)


def disagreements(quantization: Mapping[str, Any] | None, config: Mapping[str, Any]) -> Iterator[str]:
    """Where config.json and hf_quant_config.json differ: loaders read one or the other."""
    section = config.get("quantization_config")
    if (quantization is None) != (section is None):
        there, missing = ("config.json", QUANT_CONFIG_NAME) if section else (QUANT_CONFIG_NAME, "config.json")
        yield f"{there} says that the checkpoint is quantized, and {missing} does not"
    if quantization is None or section is None:
        return
    if section.get("quant_method") != "modelopt":
        yield f"quantization_config.quant_method is {section.get('quant_method')!r}, not 'modelopt'"
    scheme = section.get("kv_cache_scheme") or {}
    fp8 = scheme.get("type") == "float" and scheme.get("num_bits") == 8
    theirs = {
        **section,
        "kv_cache_quant_algo": "FP8" if fp8 else None,
        "exclude_modules": section.get("ignore"),
    }
    for key in ("quant_algo", "kv_cache_quant_algo", "exclude_modules", "group_size", "quantized_layers"):
        if quantization.get(key) != theirs.get(key):
            values = f"{quantization.get(key)!r} in {QUANT_CONFIG_NAME} and {theirs.get(key)!r}"
            yield f"{key} is {values} in config.json"
