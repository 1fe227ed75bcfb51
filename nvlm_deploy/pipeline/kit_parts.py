"""The parts of a build kit: what is written without a GPU, and what the device's compilers are told.

TensorRT compiles the vision graph in either kind of kit; the language model is another graph for it, or a
checkpoint for TensorRT-LLM.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from nvlm_deploy.backends.makers import BuildProgress, EngineSettings
from nvlm_deploy.backends.tensorrt.engine import PartGraph, decoder_graph, describe, vision_graph
from nvlm_deploy.backends.tensorrt_llm.build import ENGINE_FOLDER, release_of
from nvlm_deploy.backends.tensorrt_llm.build_config import TOKENS_PER_BLOCK, EngineLimits
from nvlm_deploy.backends.tensorrt_llm.encoder_inputs import entries_of
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.kit import KitPart
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.target import Target
from nvlm_deploy.export import write_model
from nvlm_deploy.export.tensorrt_llm import Parallel
from nvlm_deploy.pipeline.export import ExportRequest
from nvlm_deploy.pipeline.export_tensorrt_llm import DEFAULT_DTYPE, plan_tensorrt_llm
from nvlm_deploy.pipeline.kit_cross import Tags, write_tags
from nvlm_deploy.planner import DevicePlan
from nvlm_deploy.quantization.plan import QuantizationPlan


class KitWriter(Protocol):
    """Writes one part of a kit."""

    @property
    def part(self) -> Literal["vision", "llm"]:
        """Which part."""

    @property
    def key(self) -> dict[str, Any]:
        """What the part depends on beside the manifest, in plain types."""

    def write(self, directory: Path, progress: BuildProgress) -> KitPart:
        """Write the part's files into the kit in `directory`; describe it."""


@dataclass(frozen=True, slots=True)
class GraphWriter:
    """A graph that TensorRT compiles."""

    graph: PartGraph
    config: NvlmConfig
    target: Target
    context: int

    @property
    def part(self) -> Literal["vision", "llm"]:
        return self.graph.part

    @property
    def key(self) -> dict[str, Any]:
        return {"part": self.part, "opset": self.graph.dialect.opset, **self.graph.notes}

    def write(self, directory: Path, progress: BuildProgress) -> KitPart:
        """Write the graph, with its weights beside it."""
        section = describe(self.graph, self.config, self.context)
        output = str(section["model"])
        source = str(Path(output).with_suffix(".onnx"))
        path = directory / source
        path.parent.mkdir(parents=True, exist_ok=True)
        write_model(self.graph.model, path, lambda name, done, total: progress(self.part, name, done, total))
        job = self.graph.job("tensorrt", self.target, Path(source), Path(output))
        made = {"library": "tensorrt", "sm": self.target.sm, **self.graph.notes}
        described = {**section, "backend": "tensorrt", "plan": made}
        return KitPart(self.part, "tensorrt", source, output, asdict(job), described)


@dataclass(frozen=True, slots=True)
class CheckpointWriter:
    """A TensorRT-LLM checkpoint of all ranks."""

    checkpoint: Path
    config: NvlmConfig
    parallel: Parallel
    version: str
    limits: EngineLimits
    reserved_bytes: int
    tags: Tags = ()

    @property
    def part(self) -> Literal["vision", "llm"]:
        return "llm"

    @property
    def key(self) -> dict[str, Any]:
        return {"part": "llm", "version": self.version, **asdict(self.parallel), **asdict(self.limits)}

    def write(self, directory: Path, progress: BuildProgress) -> KitPart:
        """Write `config.json` and one file for each rank."""
        output = directory / ENGINE_FOLDER
        if output.exists():
            # Complete, but the run was killed before it could say so.
            shutil.rmtree(output)
        options = {"tp": self.parallel.tp, "pp": self.parallel.pp, "version": self.version}
        plan = plan_tensorrt_llm(ExportRequest(self.checkpoint, output, options))
        plan.run(lambda stage, done, total: progress("llm", stage, done, total))
        if self.tags:
            write_tags(directory, self.checkpoint, self.tags)
        return KitPart(
            "llm",
            "tensorrt_llm",
            ENGINE_FOLDER,
            ENGINE_FOLDER,
            {"version": self.version, "limits": asdict(self.limits)},
            self._section(),
        )

    def _section(self) -> dict[str, Any]:
        language, limits = self.config.language, self.limits
        blocks = -(-limits.context // TOKENS_PER_BLOCK)
        cross = self.config.cross_attention
        return {
            **({} if cross is None else {"encoder_entries": limits.encoder_entries}),
            "engine": ENGINE_FOLDER,
            "context_length": limits.context,
            "hidden_size": language.hidden_size,
            "vocab_size": language.vocab_size,
            "dtype": DEFAULT_DTYPE,
            "tp": self.parallel.tp,
            "pp": self.parallel.pp,
            "kv_cache": {
                "max_tokens": blocks * TOKENS_PER_BLOCK * limits.max_batch,
                "tokens_per_block": TOKENS_PER_BLOCK,
                "reserved_bytes": self.reserved_bytes,
            },
        }


def plan_parts(
    weights: ModelWeights,
    config: NvlmConfig,
    quantization: QuantizationPlan,
    settings: EngineSettings,
    device: DevicePlan,
) -> tuple[KitWriter, ...]:
    """Return the writers of a kit's parts, for the ranks of `device`; weights stay lazy."""
    target = settings.target
    assert target is not None, "kits are made for a target"
    context, tags = settings.context_length, settings.tags
    vision = vision_graph("tensorrt", weights, config, quantization, settings)
    tower = GraphWriter(vision, config, target, context)
    if target.backend != "tensorrt_llm":
        decoder = decoder_graph("tensorrt", weights, config, quantization, settings)
        return (tower, GraphWriter(decoder, config, target, context))
    parallel = Parallel(device.parallel.tp, device.parallel.pp)
    limits = engine_limits(config, target, context, tags)
    reserved = device.memory.vision_activations + device.memory.workspace
    release = release_of(target).name
    directory = weights.reader.directory
    return (tower, CheckpointWriter(directory, config, parallel, release, limits, reserved, tags))


def engine_limits(config: NvlmConfig, target: Target, context: int, tags: Tags = ()) -> EngineLimits:
    """What a TensorRT-LLM engine is built for: an image of the most tiles, with thumbnail, per request."""
    tiles = config.max_tiles + (config.max_tiles > 1 and config.use_thumbnail)
    attended, per_tile = config.cross_tiles(tiles), config.visual_tokens_per_tile
    longest = max(map(len, tags), default=0)
    return EngineLimits(
        max_batch=target.limits.max_batch,
        context=context,
        max_tiles=tiles - attended,
        tokens_per_tile=per_tile,
        max_num_tokens=target.limits.max_num_tokens,
        encoder_entries=entries_of(attended, per_tile, longest) if config.cross_attention else 0,
    )
