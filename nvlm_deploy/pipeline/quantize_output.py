"""What stands beside the weights of a quantized checkpoint: the index, the configs, and how it was made."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from nvlm_deploy import __version__
from nvlm_deploy.calibration import CalibrationSamples
from nvlm_deploy.checkpoint.shards import INDEX_NAME
from nvlm_deploy.checkpoint.weight_table import model_table
from nvlm_deploy.checkpoint.writer import copy_companion_files
from nvlm_deploy.pipeline.quantize_plan import QuantizePlan
from nvlm_deploy.quantization.plan import FULL_PRECISION, QuantizationPlan, Storage
from nvlm_deploy.quantization.record import RECORD_NAME
from nvlm_deploy.quantization.unified import QUANT_CONFIG_NAME, config_json_section, quant_config

_TOOLS = ("nvidia-modelopt", "numpy", "safetensors", "torch")


def checkpoint_storages(plan: QuantizationPlan) -> dict[str, Storage]:
    """Storage of every parameter in the checkpoint: what engines round themselves is in floats there."""
    return {
        name: tensor.storage if tensor.storage.algorithm else FULL_PRECISION
        for name, tensor in plan.tensors.items()
    }


def write_index(directory: Path, notes: list[dict[str, Any]]) -> None:
    weight_map = {name: note["shard"] for note in notes for name in note["tensors"]}
    total = sum(size for note in notes for size in note["tensors"].values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(directory / INDEX_NAME, index)


def write_manifest(
    plan: QuantizePlan,
    samples: CalibrationSamples | None,
    directory: Path,
    key: dict[str, Any],
    notes: list[dict[str, Any]],
) -> dict[str, Any]:
    """Write the configs of the unified layout, and what the checkpoint was made of."""
    copy_companion_files(plan.checkpoint, directory)
    storages = checkpoint_storages(plan.quantization)
    linears = {
        rule.sources[0].removesuffix(".weight"): storages[rule.targets[0]]
        for rule in model_table(plan.weights.reader.config).rules
        if plan.quantization.tensors[rule.targets[0]].matrix
    }
    hf_config = quant_config(linears, plan.recipe.kv_cache)
    _write_json(directory / QUANT_CONFIG_NAME, hf_config)
    config_path = directory / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["quantization_config"] = config_json_section(hf_config)
    _write_json(config_path, config)
    manifest = {
        **key,
        "calibration": samples.summary.to_dict() if samples is not None else None,
        "sizes": [asdict(size) for size in plan.sizes],
        "steps": [{k: note[k] for k in ("step", "seconds", "seconds_shown", "inputs")} for note in notes],
    }
    _write_json(directory / RECORD_NAME, manifest)
    return manifest


def tool_versions() -> dict[str, str | None]:
    """Versions of what the numbers are made with."""
    return {"nvlm-deploy": __version__, **{name: _version(name) for name in _TOOLS}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
