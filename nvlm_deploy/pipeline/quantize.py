"""Stage: released checkpoint -> quantized checkpoint in the unified HF layout."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nvlm_deploy.calibration import CalibrationSamples, load_samples
from nvlm_deploy.checkpoint.shards import INDEX_NAME
from nvlm_deploy.checkpoint.weight_table import model_table
from nvlm_deploy.checkpoint.writer import copy_companion_files
from nvlm_deploy.config.recipe import STATIC_ACTIVATIONS
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.pipeline.quantize_plan import QuantizePlan
from nvlm_deploy.pipeline.resumable import ResumableWork, resumable_directory
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.quantization.formats.fp8 import E4M3_MAX
from nvlm_deploy.quantization.groups import LinearGroup
from nvlm_deploy.quantization.observe import Observed
from nvlm_deploy.quantization.plan import FULL_PRECISION, QuantizationPlan, Storage
from nvlm_deploy.quantization.record import RECORD_NAME, QuantizationRecord
from nvlm_deploy.quantization.release import released_step
from nvlm_deploy.quantization.search import GroupScales, ScaleSearch
from nvlm_deploy.quantization.steps import DecoderLayerStep, Step
from nvlm_deploy.quantization.stream import CalibrationStream, StreamSettings
from nvlm_deploy.quantization.streamed_model import StreamedModel
from nvlm_deploy.quantization.unified import QUANT_CONFIG_NAME, config_json_section, quant_config

_TOOLS = ("nvidia-modelopt", "numpy", "safetensors", "torch")


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """A finished checkpoint and what its `quantization.json` says."""

    checkpoint: Path
    manifest: dict[str, Any]


def quantize_checkpoint(plan: QuantizePlan, progress: ProgressCallback = no_progress) -> QuantizeResult:
    """Run `plan`, step by step; a run that was killed is continued behind its last finished step.

    Raises:
        NvlmError: the calibration set is not in order or lacks what the recipe calibrates, the disk is full.
    """
    samples = None
    if plan.calibration is not None:
        samples = load_samples(
            plan.calibration, plan.weights.reader.config, plan.tokenizer, plan.calibration_directory, progress
        )
        _check_samples(plan, samples)
    key = _key(plan, samples)
    if plan.intermediate and plan.output.exists():
        record = QuantizationRecord.read(plan.output).raw
        if key.items() <= record.items():
            return QuantizeResult(plan.output, record)
        shutil.rmtree(plan.output)
    with resumable_directory(plan.output, key) as work:
        notes = _Quantizer(plan, samples, work, progress).run()
        manifest = _write_manifest(plan, samples, work.result, key, notes)
    return QuantizeResult(plan.output, manifest)


class _Quantizer:
    """Quantizes one step after the other into shards of `work.result`."""

    def __init__(
        self,
        plan: QuantizePlan,
        samples: CalibrationSamples | None,
        work: ResumableWork,
        progress: ProgressCallback,
    ) -> None:
        self.plan, self.work, self.progress = plan, work, progress
        device = torch.device(plan.device)
        model = StreamedModel(plan.weights, device)
        settings = StreamSettings(plan.calibration.class_weights) if plan.calibration else StreamSettings()
        self.stream = CalibrationStream(model, samples, work.directory / "spool", settings, progress)
        self.storages = _checkpoint_storages(plan.quantization)
        self.search = ScaleSearch(plan.recipe, self.storages, plan.weights, device)
        watched = [i for i, step in enumerate(self.stream.steps) if self._observed(step)]
        # Hidden states are computed up to the last step that anything is learnt from.
        self.last_shown = max(watched, default=-1) if samples is not None else -1

    def run(self) -> list[dict[str, Any]]:
        """Make all shards and the index; return what every step noted."""
        notes = []
        for index, step in enumerate(self.stream.steps):
            note = self.work.finished(index)
            if note is None:
                note = self._quantize(index, step)
                self.work.finish(index, note)
            self.stream.finish(index)
            notes.append(note)
            self.progress("quantize", index + 1, len(self.stream.steps))
        _write_index(self.work.result, notes)
        return notes

    def _quantize(self, index: int, step: Step) -> dict[str, Any]:
        began = time.perf_counter()
        seen = self.stream.observe(index) if index <= self.last_shown else {}
        scaled: dict[LinearGroup, GroupScales] = {}
        for group in step.groups:
            needed = any(_is_calibrated(self.storages[name]) for name in group.weights)
            scaled[group] = self.search.search(group, seen.get(group.linears[0]) if needed else None)
        tensors = dict(released_step(self.search, step.parameters, scaled))
        tensors.update(self._kv_scales(step))
        shard = f"model-{index + 1:05}-of-{len(self.stream.steps):05}.safetensors"
        path = self.work.result / shard
        temporary = path.with_name(shard + ".tmp")
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary, {"format": "pt"})
        temporary.replace(path)
        return {
            "step": step.name,
            "shard": shard,
            "tensors": {name: tensor.nbytes for name, tensor in tensors.items()},
            "inputs": _describe(scaled, seen),
            "seconds": time.perf_counter() - began,
        }

    def _kv_scales(self, step: Step) -> dict[str, torch.Tensor]:
        """FP8 scales of keys and values, under the names of ModelOpt."""
        if self.plan.recipe.kv_cache != "fp8" or not isinstance(step, DecoderLayerStep):
            return {}
        stem = f"language_model.model.layers.{step.layer}.self_attn."
        ranges = {"k_proj.k_scale": step.kv_range.keys_amax, "v_proj.v_scale": step.kv_range.values_amax}
        return {stem + name: torch.tensor(amax / E4M3_MAX) for name, amax in ranges.items()}

    def _observed(self, step: Step) -> bool:
        cached = self.plan.recipe.kv_cache == "fp8" and isinstance(step, DecoderLayerStep)
        return cached or any(
            _is_calibrated(self.storages[name])
            for group in step.groups
            for name in group.weights
            if name in self.storages
        )


def _checkpoint_storages(plan: QuantizationPlan) -> dict[str, Storage]:
    """Storage of every parameter in the checkpoint: what engines round themselves is in floats there."""
    return {
        name: tensor.storage if tensor.storage.algorithm else FULL_PRECISION
        for name, tensor in plan.tensors.items()
    }


def _is_calibrated(storage: Storage) -> bool:
    """Whether a matrix's numbers depend on what it sees."""
    searched = storage.algorithm not in (None, "max")
    return storage.quantized and (searched or storage.activations in STATIC_ACTIVATIONS)


def _describe(scaled: Mapping[LinearGroup, GroupScales], seen: Mapping[str, Observed]) -> dict[str, Any]:
    """Statistics of the inputs of every group that was watched, by its first linear."""
    described = {}
    for group, scales in scaled.items():
        observed = seen.get(group.linears[0])
        if observed is not None:
            described[group.linears[0]] = {
                "by_class": observed.by_class(),
                "input_scale": None if scales.input_scale is None else float(scales.input_scale),
                "folded_into": group.norm if scales.folds else None,
            }
    return described


def _write_index(directory: Path, notes: list[dict[str, Any]]) -> None:
    weight_map = {name: note["shard"] for note in notes for name in note["tensors"]}
    total = sum(size for note in notes for size in note["tensors"].values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(directory / INDEX_NAME, index)


def _write_manifest(
    plan: QuantizePlan,
    samples: CalibrationSamples | None,
    directory: Path,
    key: dict[str, Any],
    notes: list[dict[str, Any]],
) -> dict[str, Any]:
    """Write the configs of the unified layout, and what the checkpoint was made of."""
    copy_companion_files(plan.checkpoint, directory)
    storages = _checkpoint_storages(plan.quantization)
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
        "tool_versions": {name: _version(name) for name in _TOOLS},
        "sizes": [asdict(size) for size in plan.sizes],
        "steps": [{k: note[k] for k in ("step", "seconds", "inputs")} for note in notes],
    }
    _write_json(directory / RECORD_NAME, manifest)
    return manifest


def _key(plan: QuantizePlan, samples: CalibrationSamples | None) -> dict[str, Any]:
    """What every number of the output depends on."""
    weights = plan.calibration.class_weights.model_dump() if plan.calibration else None
    return {
        "checkpoint_fingerprint": plan.weights.reader.fingerprint(),
        "recipe": plan.recipe.model_dump(mode="json"),
        "calibration_digest": samples.summary.digest if samples is not None else None,
        "class_weights": weights,
        "device": plan.device,
    }


def _check_samples(plan: QuantizePlan, samples: CalibrationSamples) -> None:
    tower = [t.storage for t in plan.quantization.tensors.values() if t.part in ("vision", "projector")]
    if samples.summary.images == 0 and any(_is_calibrated(storage) for storage in tower):
        raise NvlmError(
            f"recipe {plan.recipe.name} calibrates the vision tower, and the calibration set "
            f"'{samples.summary.name}' has no image",
            hint="use a set with images, for example --calibration documents",
        )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
