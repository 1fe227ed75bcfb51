"""Stage: released checkpoint -> quantized checkpoint in the unified HF layout."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nvlm_deploy.calibration import CalibrationSamples, load_samples
from nvlm_deploy.checkpoint.safetensors_file import write_file
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.pipeline.quantize_output import (
    checkpoint_storages,
    tool_versions,
    write_index,
    write_manifest,
)
from nvlm_deploy.pipeline.quantize_plan import QuantizePlan
from nvlm_deploy.pipeline.quantize_progress import QuantizeProgress
from nvlm_deploy.pipeline.resumable import ResumableWork, resumable_directory
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.quantization.checkpoint import kv_scale_names
from nvlm_deploy.quantization.formats.codec import scales_of
from nvlm_deploy.quantization.formats.fp8 import E4M3_MAX
from nvlm_deploy.quantization.groups import LinearGroup
from nvlm_deploy.quantization.observe import Observed
from nvlm_deploy.quantization.plan import Storage
from nvlm_deploy.quantization.record import QuantizationRecord
from nvlm_deploy.quantization.release import folded_parameters, released_part, released_rest
from nvlm_deploy.quantization.search import GroupScales, ScaleSearch
from nvlm_deploy.quantization.steps import DecoderLayerStep, Step
from nvlm_deploy.quantization.stream import CalibrationStream, StreamSettings
from nvlm_deploy.quantization.streamed_model import StreamedModel


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """A finished checkpoint and what its `quantization.json` says."""

    checkpoint: Path
    manifest: dict[str, Any]


def quantize_checkpoint(plan: QuantizePlan, progress: ProgressCallback = no_progress) -> QuantizeResult:
    """Run `plan`, step by step; a run that was killed is continued behind its last finished step.

    Raises:
        NvlmError: the calibration set is not in order or lacks what the recipe calibrates, the disk is full.
        UnsuitableError: the disk has too little room.
    """
    samples = None
    if plan.calibration is not None:
        samples = load_samples(
            plan.calibration, plan.weights.reader.config, plan.tokenizer, plan.calibration_directory, progress
        )
        _check_samples(plan, samples)
    plan.check_disk(samples)
    key = _key(plan, samples)
    if plan.intermediate and plan.output.exists():
        record = QuantizationRecord.read(plan.output).raw
        if key.items() <= record.items():
            return QuantizeResult(plan.output, record)
        shutil.rmtree(plan.output)
    with resumable_directory(plan.output, key) as work:
        notes = _Quantizer(plan, samples, work, progress).run()
        manifest = write_manifest(plan, samples, work.result, key, notes)
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
        self.plan, self.work = plan, work
        device = torch.device(plan.device)
        model = StreamedModel(plan.weights, device)
        self.storages = checkpoint_storages(plan.quantization)
        settings = _stream_settings(plan, self.storages)
        self.stream = CalibrationStream(
            model, samples, work.directory / "spool", settings, lambda *work: self.progress.showed(*work)
        )
        self.search = ScaleSearch(plan.recipe, self.storages, plan.weights, device)
        watched = [i for i, step in enumerate(self.stream.steps) if self._observed(step)]
        # Hidden states are computed up to the last step that anything is learnt from.
        self.last_shown = max(watched, default=-1) if samples is not None else -1
        self.progress = QuantizeProgress(self.stream, plan.weights, self.storages, self.last_shown, progress)

    def run(self) -> list[dict[str, Any]]:
        """Make all shards and the index; return what every step noted."""
        notes = []
        for index, step in enumerate(self.stream.steps):
            note = self.work.finished(index)
            if note is None:
                self.progress.begin(index)
                note = self._quantize(index, step)
                self.work.finish(index, note)
            self.stream.finish(index)
            notes.append(note)
        self.progress.begin(len(notes))
        write_index(self.work.result, notes)
        return notes

    def _quantize(self, index: int, step: Step) -> dict[str, Any]:
        began = time.perf_counter()
        seen = self.stream.observe(index) if index <= self.last_shown else {}
        shown = time.perf_counter()
        tensors, inputs, left = self._kv_scales(step), {}, set(step.parameters)
        for group in step.groups:
            observed = seen.pop(group.linears[0], None)
            for part in self.search.parts(group):
                calibrated = self.storages[part.weights[0]].calibrated
                scales = self.search.search(part, observed if calibrated else None)
                tensors.update(released_part(self.search, part, scales))
                left.difference_update(part.weights, folded_parameters(part, scales))
                self.progress.searched(index, part)
                if observed is not None:
                    inputs[part.linears[0]] = _describe(part, scales, observed)
        tensors.update(released_rest(self.search, left))
        shard = f"model-{index + 1:05}-of-{len(self.stream.steps):05}.safetensors"
        write_file(self.work.result / shard, tensors)
        return {
            "step": step.name,
            "shard": shard,
            "tensors": {name: tensor.nbytes for name, tensor in tensors.items()},
            "inputs": inputs,
            "seconds": time.perf_counter() - began,
            "seconds_shown": shown - began,
        }

    def _kv_scales(self, step: Step) -> dict[str, torch.Tensor]:
        """FP8 scales of keys and values, under the names of ModelOpt."""
        if self.plan.recipe.kv_cache != "fp8" or not isinstance(step, DecoderLayerStep):
            return {}
        amaxes = torch.tensor([step.kv_range.keys_amax, step.kv_range.values_amax])
        return dict(zip(kv_scale_names(step.layer), scales_of(amaxes, E4M3_MAX).unbind(), strict=True))

    def _observed(self, step: Step) -> bool:
        cached = self.plan.recipe.kv_cache == "fp8" and isinstance(step, DecoderLayerStep)
        return cached or any(
            self.storages[name].calibrated
            for group in step.groups
            for name in group.weights
            if name in self.storages
        )


def _stream_settings(plan: QuantizePlan, storages: Mapping[str, Storage]) -> StreamSettings:
    settings = StreamSettings(plan.calibration.class_weights) if plan.calibration else StreamSettings()
    # Whole inputs take memory, and the other algorithms look at their ranges alone.
    searched = any(storage.algorithm in ("awq", "gptq") for storage in storages.values())
    return settings if searched else replace(settings, rows=0)


def _describe(part: LinearGroup, scales: GroupScales, observed: Observed) -> dict[str, Any]:
    """Statistics of the inputs of linears, and what was made of them."""
    return {
        "by_class": observed.by_class(),
        "input_scale": None if scales.input_scale is None else float(scales.input_scale),
        "folded_into": part.norm if scales.folds else None,
    }


def _key(plan: QuantizePlan, samples: CalibrationSamples | None) -> dict[str, Any]:
    """What every number of the output depends on."""
    weights = plan.calibration.class_weights.model_dump() if plan.calibration else None
    return {
        "checkpoint_fingerprint": plan.weights.reader.fingerprint(),
        "recipe": plan.recipe.model_dump(mode="json"),
        "calibration_digest": samples.summary.digest if samples is not None else None,
        "class_weights": weights,
        "device": plan.device,
        "tool_versions": tool_versions(),
    }


def _check_samples(plan: QuantizePlan, samples: CalibrationSamples) -> None:
    tensors = plan.quantization.tensors.values()
    tower = [t.storage for t in tensors if t.part in ("vision", "projector")]
    if samples.summary.images == 0 and any(storage.calibrated for storage in tower):
        raise NvlmError(
            f"recipe {plan.recipe.name} calibrates the vision tower, and the calibration set "
            f"'{samples.summary.name}' has no image",
            hint="use a set with images, for example --calibration documents",
        )
    cross = [t.storage for t in tensors if ".cross." in t.name]
    if samples.summary.cross_tiles == 0 and any(storage.calibrated for storage in cross):
        variant = plan.weights.reader.config.variant
        several = "no image of several tiles" if variant == "H" else "no image"
        raise NvlmError(
            f"recipe {plan.recipe.name} calibrates the cross-attention of this NVLM-{variant}, and the "
            f"calibration set '{samples.summary.name}' has {several}",
            hint="use a set with such images, for example --calibration documents",
        )
