"""The unified HF checkpoint of ModelOpt: how `config.json` and `hf_quant_config.json` describe one.

vLLM, SGLang and TensorRT-LLM read these files; the tensors beside them have released names with the
suffixes `weight`, `weight_scale`, `weight_scale_2`, `input_scale` and `pre_quant_scale`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nvlm_deploy.config.recipe import NVFP4_GROUP
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.plan import Storage

QUANT_CONFIG_NAME = "hf_quant_config.json"
# Loaders tell the format by this name.
_PRODUCER = {"name": "modelopt", "version": "0.47.0"}
_FORMATS: dict[str, Storage] = {
    "FP8": Storage("fp8", activations="fp8"),
    "W4A16_AWQ": Storage("int4", activations="int8"),
    "W4A8_AWQ": Storage("int4", activations="fp8"),
    "W8A8_SQ_PER_CHANNEL": Storage("int8", activations="int8-static"),
    "W8A16": Storage("int8", activations="int8"),
    "NVFP4": Storage("nvfp4", NVFP4_GROUP, activations="nvfp4"),
    "W4A16_NVFP4": Storage("nvfp4", NVFP4_GROUP),
}
_GROUPED = ("W4A16_AWQ", "W4A8_AWQ")


def quant_algorithm(storage: Storage) -> str:
    """Return ModelOpt's name for `storage`.

    Raises:
        NvlmError: the unified checkpoint has no such format.
    """
    activations = "int8" if storage.format in ("int4", "int8") else "fp32"
    wanted = storage.activations if storage.activations != "fp32" else activations
    for name, known in _FORMATS.items():
        if (known.format, known.activations) == (storage.format, wanted):
            return name
    raise NvlmError(
        f"a unified checkpoint has no {storage.format} weights with {storage.activations} activations",
        hint="formats: " + ", ".join(_FORMATS),
    )


def quant_config(linears: Mapping[str, Storage], kv_cache: str) -> dict[str, Any]:
    """Return the contents of `hf_quant_config.json`.

    Args:
        linears: storage of every module with a matrix, by released name without `.weight`.
        kv_cache: the recipe's.
    """
    algorithms = {name: quant_algorithm(s) for name, s in linears.items() if s.quantized}
    kinds = {(algorithms[name], linears[name].group_size) for name in algorithms}
    quantization: dict[str, Any] = {"kv_cache_quant_algo": "FP8" if kv_cache == "fp8" else None}
    if len(kinds) == 1:
        algorithm, group_size = kinds.pop()
        quantization = {"quant_algo": algorithm, **quantization, **_details(algorithm, group_size)}
    else:
        quantization = {"quant_algo": "MIXED_PRECISION", **quantization}
        quantization["quantized_layers"] = {
            name: {"quant_algo": algorithm, **_details(algorithm, linears[name].group_size)}
            for name, algorithm in algorithms.items()
        }
    quantization["exclude_modules"] = _excluded(linears)
    return {"producer": _PRODUCER, "quantization": quantization}


def config_json_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `quantization_config` of config.json for the contents of `hf_quant_config.json`."""
    quantization = config["quantization"]
    section: dict[str, Any] = {"quant_method": "modelopt", "producer": config["producer"]}
    renamed = {"exclude_modules": "ignore"}
    for key, value in quantization.items():
        if key != "kv_cache_quant_algo":
            section[renamed.get(key, key)] = value
    if quantization["kv_cache_quant_algo"] == "FP8":
        section["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    number = {"FP8": {"num_bits": 8}, "NVFP4": {"num_bits": 4, "group_size": NVFP4_GROUP}}.get(
        quantization["quant_algo"]
    )
    if number:
        tensors = {"dynamic": False, "type": "float", **number}
        group = {"input_activations": tensors, "weights": tensors, "targets": ["Linear"]}
        section["config_groups"] = {"group_0": group}
    return section


class QuantConfig:
    """`hf_quant_config.json` as it is read."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        """Check `raw`; `where` is named in errors.

        Raises:
            NvlmError: a key is missing, or the format is one that this project does not read.
        """
        self._where = where
        quantization = raw.get("quantization")
        if not isinstance(quantization, dict) or not isinstance(quantization.get("quant_algo"), str):
            raise NvlmError(f"{where}: there is no quantization.quant_algo")
        self._layers: Mapping[str, Any] | None = None
        if quantization["quant_algo"] == "MIXED_PRECISION":
            self._layers = quantization.get("quantized_layers", {})
        self._common = quantization
        self._excluded = quantization.get("exclude_modules") or []
        self.fp8_kv_cache = quantization.get("kv_cache_quant_algo") == "FP8"

    @classmethod
    def read(cls, directory: Path) -> QuantConfig | None:
        """Read the file of a checkpoint; None if it has none, and so is not quantized."""
        path = directory / QUANT_CONFIG_NAME
        if not path.exists():
            return None
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise NvlmError(f"{path} cannot be read: {error}") from None
        return cls(raw, str(path))

    def storage(self, module: str) -> Storage | None:
        """How a module's matrix is stored, by its released name without `.weight`; None if in floats."""
        if self._layers is not None:
            entry = self._layers.get(module)
            return None if entry is None else self._parse(entry)
        if any(fnmatchcase(module, pattern) for pattern in self._excluded):
            return None
        return self._parse(self._common)

    def _parse(self, entry: Mapping[str, Any]) -> Storage:
        algorithm = entry["quant_algo"]
        if algorithm not in _FORMATS:
            raise NvlmError(
                f"{self._where}: the format {algorithm} is not supported",
                hint="known: " + ", ".join(_FORMATS),
            )
        known = _FORMATS[algorithm]
        group_size = entry.get("group_size", 128) if algorithm in _GROUPED else known.group_size
        return Storage(known.format, group_size, activations=known.activations, algorithm="max")


def _details(algorithm: str, group_size: int) -> dict[str, Any]:
    if algorithm in _GROUPED:
        return {"group_size": group_size, "has_zero_point": False, "pre_quant_scale": True}
    return {"group_size": NVFP4_GROUP} if algorithm == "NVFP4" else {}


def _excluded(linears: Mapping[str, Storage]) -> list[str]:
    """Modules in floats: whole branches as one pattern where nothing below them is quantized."""
    excluded: list[str] = []
    for branch in ("vision_model", "mlp1"):
        below = [name for name in linears if name.split(".")[0] == branch]
        if not any(linears[name].quantized for name in below):
            excluded.append(f"{branch}*")
    patterns = tuple(excluded)
    for name, storage in linears.items():
        if not storage.quantized and not any(fnmatchcase(name, pattern) for pattern in patterns):
            excluded.append(name)
    return sorted(excluded)
