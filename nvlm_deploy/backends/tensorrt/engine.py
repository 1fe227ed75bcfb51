"""Engines of TensorRT and TensorRT-RTX: standard graphs in their dialect, compiled into plans."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir

from nvlm_deploy.backends.makers import BuildProgress, EngineSettings
from nvlm_deploy.backends.sections import decoder_section, vision_section
from nvlm_deploy.backends.tensorrt.compile import CompileJob, compile_graph, load_library
from nvlm_deploy.backends.tensorrt.dialects import Part, computes_in_16_bits, dialect_for
from nvlm_deploy.backends.tensorrt.profiles import Ranges, decoder_ranges, vision_ranges
from nvlm_deploy.backends.tensorrt.suitable import check_plan
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.target import Target
from nvlm_deploy.export import Dialect, Progress, build_decoder, build_vision, write_model
from nvlm_deploy.export.dialect import FloatType
from nvlm_deploy.quantization.plan import QuantizationPlan

logger = logging.getLogger(__name__)

VISION_PATH = "vision/vision.plan"
DECODER_PATH = "llm/decoder.plan"
_PATHS: dict[Part, str] = {"vision": VISION_PATH, "llm": DECODER_PATH}
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class PartGraph:
    """One graph before it is compiled. notes: what the manifest says of how it computes."""

    part: Part
    model: ir.Model
    dialect: Dialect
    ranges: tuple[Ranges, ...]
    notes: dict[str, Any] = field(default_factory=dict)

    def job(self, library: str, target: Target, graph: Path, plan: Path) -> CompileJob:
        """Return what compiles this graph for `target`."""
        assert target.sm is not None, "plans are for GPUs"
        return CompileJob(
            library=library,
            graph=str(graph),
            plan=str(plan),
            sm=target.sm,
            profiles=tuple(ranges.profile(self.model) for ranges in self.ranges),
            workspace=int(target.limits.workspace_gib * _GIB) or None,
        )


class PlanMaker:
    """Makes engines with one library; see `EngineMaker`."""

    def __init__(self, library: str, package: str) -> None:
        """`package` is the distribution whose version bundles record."""
        self.library, self._package = library, package

    def adapt(self, plan: QuantizationPlan) -> QuantizationPlan:
        """See `EngineMaker.adapt`."""
        return plan

    def check(self, config: NvlmConfig, plan: QuantizationPlan, settings: EngineSettings) -> None:
        """See `EngineMaker.check`."""
        check_plan(self.library, config, plan, settings)

    def files(self) -> tuple[str, ...]:
        """See `EngineMaker.files`."""
        return tuple(_PATHS.values())

    def disk_bytes(self, plan: QuantizationPlan) -> int:
        """See `EngineMaker.disk_bytes`: plans, and beside them the graph that is compiled."""
        parts = plan.sizes()
        return sum(part.after for part in parts) + max(
            sum(part.after for part in parts if part.part in ("vision", "projector")),
            sum(part.after for part in parts if part.part not in ("vision", "projector")),
        )

    def tools(self) -> Mapping[str, str]:
        """See `EngineMaker.tools`."""
        return {self.library: metadata.version(self._package)}

    def build_engine(
        self,
        weights: ModelWeights,
        config: NvlmConfig,
        plan: QuantizationPlan,
        settings: EngineSettings,
        output: Path,
        progress: BuildProgress | None = None,
    ) -> dict[str, Any]:
        """See `EngineMaker.build_engine`. The compiler holds one part's weights in memory, a few times.

        Raises:
            UnsuitableError: the library is not installed here, or see `check`.
            NvlmError: the library refuses a graph, or its process ends.
        """
        self.check(config, plan, settings)
        load_library(self.library)
        graphs = part_graphs(self.library, weights, config, plan, settings)
        return {graph.part: self._compile(graph, config, settings, output, progress) for graph in graphs}

    def _compile(
        self,
        graph: PartGraph,
        config: NvlmConfig,
        settings: EngineSettings,
        output: Path,
        progress: BuildProgress | None,
    ) -> dict[str, Any]:
        target, part = settings.target, graph.part
        assert target is not None, "check refuses builds without a target"
        section = describe(graph, config, settings.context_length)
        path = output / _PATHS[part]
        path.parent.mkdir(parents=True, exist_ok=True)
        source = path.with_suffix(".onnx")
        try:
            write_model(graph.model, source, _for_part(progress, part))
            logger.info("compiling %s for SM %s", path, target.sm)
            job = graph.job(self.library, target, source, path)
            result = compile_graph(job)
        finally:
            for file in (source, source.with_name(source.name + ".data")):
                file.unlink(missing_ok=True)
        profiles = [ranges.sizes for ranges in graph.ranges]
        made = {"library": self.library, "sm": target.sm, "profiles": profiles, **asdict(result)}
        return {**section, "plan": {**made, **graph.notes}}


def part_graphs(
    library: str,
    weights: ModelWeights,
    config: NvlmConfig,
    plan: QuantizationPlan,
    settings: EngineSettings,
) -> tuple[PartGraph, PartGraph]:
    """Return the graphs of both parts in the dialect of the target's library; weights stay lazy."""
    return (
        vision_graph(library, weights, config, plan, settings),
        decoder_graph(library, weights, config, plan, settings),
    )


def vision_graph(
    library: str,
    weights: ModelWeights,
    config: NvlmConfig,
    plan: QuantizationPlan,
    settings: EngineSettings,
) -> PartGraph:
    """Return the graph of tower and projector; see `part_graphs`."""
    target = _target(settings)
    floats, exceptions, notes = _guarded(weights, plan, settings)
    tower = dialect_for("vision", plan, _opset(target, library), floats, exceptions)
    model = build_vision(config, weights, plan, tower)
    ranges = vision_ranges(config, target.limits.max_batch)
    return PartGraph("vision", model, tower, ranges, {**_notes(tower), **notes})


def decoder_graph(
    library: str,
    weights: ModelWeights,
    config: NvlmConfig,
    plan: QuantizationPlan,
    settings: EngineSettings,
) -> PartGraph:
    """Return the graph of the language model; see `part_graphs`."""
    target, context = _target(settings), settings.context_length
    decoder = dialect_for("llm", plan, _opset(target, library), target.compute)
    model = build_decoder(config.language, weights, plan, context, decoder)
    apart = target.decoder_profiles > 1
    ranges = decoder_ranges(config, context, target.limits.max_batch, decode_apart=apart)
    return PartGraph("llm", model, decoder, ranges, _notes(decoder))


def _target(settings: EngineSettings) -> Target:
    assert settings.target is not None, "plans are made for a target"
    return settings.target


def describe(graph: PartGraph, config: NvlmConfig, context_length: int) -> dict[str, Any]:
    """The manifest's section of one part, without what compiling it took."""
    if graph.part == "vision":
        return vision_section(config, graph.model, model=VISION_PATH)
    in_place = graph.dialect.cache == "scatter"
    return decoder_section(config, graph.model, context_length, in_place=in_place, model=DECODER_PATH)


def _guarded(
    weights: ModelWeights, plan: QuantizationPlan, settings: EngineSettings
) -> tuple[FloatType, Mapping[str, FloatType], dict[str, Any]]:
    """What the tower computes in, and the blocks for which FP16 is too little."""
    target = settings.target
    assert target is not None
    if target.compute != "fp16" or settings.tiles is None or not computes_in_16_bits("vision", plan):
        return target.compute, {}, {}
    from nvlm_deploy.backends.tensorrt.guard import guard_tower

    report = guard_tower(weights, settings.tiles(), target.tolerances.vision_cosine)
    return "fp16", report.exceptions, {"fp16_check": report.to_dict()}


def _notes(dialect: Dialect) -> dict[str, Any]:
    return {"opset": dialect.opset, "floats": dialect.floats, "exceptions": dict(dialect.exceptions)}


def _opset(target: Target, library: str) -> int:
    return next(opset for backend, opset in target.onnx_opset.items() if backend == library)


def _for_part(progress: BuildProgress | None, part: str) -> Progress | None:
    if progress is None:
        return None
    return lambda name, done, total: progress(part, name, done, total)
