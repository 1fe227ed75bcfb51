"""Stage: checkpoint -> engine bundle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nvlm_deploy
from nvlm_deploy.backends.makers import EngineSettings
from nvlm_deploy.calibration import load_samples
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.calibration import read_calibration_set
from nvlm_deploy.config.machine import tool_versions
from nvlm_deploy.config.manifest import (
    FORMAT_VERSION,
    EngineManifest,
    PromptSettings,
    TilerSettings,
    collect_files,
)
from nvlm_deploy.config.strict_json import to_json
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.pipeline.atomic import atomic_directory
from nvlm_deploy.pipeline.measured import PREDICTION_KEY, BuildMeter, prediction_and_measurement
from nvlm_deploy.pipeline.plan import EnginePlan
from nvlm_deploy.pipeline.quantize import quantize_checkpoint
from nvlm_deploy.preprocess.assembly import tile_tags
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.quantization.checkpoint import QuantizedWeights, open_weights
from nvlm_deploy.quantization.record import QuantizationRecord

# What a 16-bit tower is tried with before its engine is written; the 6B tower takes minutes a tile.
_TRIED_SAMPLES = 8
_TRIED_TILES = 4

# What a bundle's contents depend on.
_TOOLS = ("numpy", "onnx", "onnx-ir", "onnxruntime", "pillow", "tokenizers", "torch")


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished bundle: where it is and what its manifest says."""

    bundle: Path
    manifest: EngineManifest
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        return {
            "bundle": str(self.bundle),
            "seconds": round(self.seconds, 3),
            "manifest": to_json(self.manifest),
        }


def build_engine_bundle(plan: EnginePlan, progress: ProgressCallback = no_progress) -> BuildResult:
    """Run `plan`. The bundle appears at `plan.output` whole or not at all.

    Raises:
        UsageError: the output has appeared since the plan was made.
        UnsuitableError: the target is known not to hold the engine.
        NvlmError: the disk is full, or a tensor cannot be stored as planned.
    """
    plan.device.require_fit()
    meter = BuildMeter()
    weights, record = prepared_weights(plan, progress)
    manifest = settled_manifest(plan, record, plan.maker.tools())
    with atomic_directory(plan.output) as work:
        copy_files(plan, work)
        sections = plan.maker.build_engine(
            weights,
            plan.config,
            plan.quantization,
            _settings(plan, manifest),
            work,
            lambda part, tensor, done, total: progress(part, done, total),
        )
        files = collect_files(work, progress)
        results = {PREDICTION_KEY: prediction_and_measurement(plan.device, files, meter)}
        manifest = replace(manifest, **sections, files=files, results=results)
        manifest.write(work)
    if plan.quantize is not None:
        shutil.rmtree(plan.quantize.output)
    return BuildResult(plan.output, manifest, meter.seconds())


def _settings(plan: EnginePlan, manifest: EngineManifest) -> EngineSettings:
    return EngineSettings(
        context_length=plan.context,
        target=plan.target,
        tiles=partial(tried_tiles, plan),
        record=manifest.record(),
        tags=tile_tags(plan.tokenizer, plan.config),
    )


def prepared_weights(
    plan: EnginePlan, progress: ProgressCallback
) -> tuple[ModelWeights, QuantizationRecord | None]:
    """The weights that are written, and what is recorded of them if they are quantized."""
    weights = plan.weights
    if plan.quantize is not None:
        weights = open_weights(quantize_checkpoint(plan.quantize, progress).checkpoint)
    quantized = isinstance(weights, QuantizedWeights)
    return weights, QuantizationRecord.read(weights.reader.directory) if quantized else None


def tried_tiles(plan: EnginePlan) -> NDArray[np.uint8]:
    """A few tiles of the calibration set, uint8 [T, I, I, 3]: of each image the first and the last."""
    spec, directory = read_calibration_set(plan.calibration, [f"count={_TRIED_SAMPLES}"])
    samples = load_samples(spec, plan.config, plan.tokenizer, directory)
    ends = [sample.tiles[[0, -1]] for sample in samples if len(sample.tiles)]
    if not ends:
        raise NvlmError(
            f"calibration set '{plan.calibration}' begins with {_TRIED_SAMPLES} samples without an image",
            hint="a 16-bit vision tower is tried with images: choose a set that has some",
        )
    return np.concatenate(ends)[:_TRIED_TILES]


def copy_files(plan: EnginePlan, work: Path) -> None:
    """Write config, tokenizer and their companions into `work`."""
    for name in plan.copied_files:
        shutil.copyfile(plan.checkpoint / name, work / name)
    # Not a copy: a checkpoint may hold its tokenizer as vocab.json and merges.txt.
    plan.tokenizer.save(work)


def settled_manifest(
    plan: EnginePlan, record: QuantizationRecord | None, tools: Mapping[str, str]
) -> EngineManifest:
    """The manifest as far as it is known before the graphs are written."""
    config = plan.config
    return EngineManifest(
        format_version=FORMAT_VERSION,
        project_version=nvlm_deploy.__version__,
        variant=config.variant,
        backend=plan.target.backend,
        recipe=plan.recipe.model_dump(mode="json"),
        target=plan.target.model_dump(mode="json"),
        checkpoint_fingerprint=record.fingerprint if record else plan.weights.reader.fingerprint(),
        quantization=record.summary() if record else None,
        tool_versions={**tool_versions(_TOOLS), **tools},
        context=plan.context,
        tiler=TilerSettings(
            tile_size=config.tile_size,
            min_tiles=config.min_tiles,
            max_tiles=config.max_tiles,
            use_thumbnail=config.use_thumbnail,
            visual_tokens_per_tile=config.visual_tokens_per_tile,
        ),
        prompt=PromptSettings(mode="hf", thumbnail_tag=config.thumbnail_tag),
        vision={},
        llm={},
        sizes=plan.sizes,
        files=(),
        results={},
    )
