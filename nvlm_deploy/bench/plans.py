"""Sizes and build times of TensorRT-RTX plans, on random weights: neither depends on the values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nvlm_deploy.backends.makers import EngineSettings
from nvlm_deploy.backends.tensorrt.compile import compile_graph
from nvlm_deploy.backends.tensorrt.dialects import PARTS, Part
from nvlm_deploy.backends.tensorrt.engine import PartGraph, part_graphs
from nvlm_deploy.backends.tensorrt.suitable import check_plan
from nvlm_deploy.checkpoint import CheckpointReader, ModelWeights
from nvlm_deploy.config.target import Target, load_target
from nvlm_deploy.errors import UnsuitableError, UsageError, did_you_mean
from nvlm_deploy.export import write_model
from nvlm_deploy.progress import ProgressCallback
from nvlm_deploy.quantization.formats import weight_codec
from nvlm_deploy.quantization.plan import QuantizationPlan, Storage, TensorPlan
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import SHAPES, ModelShape, released_style_config

LIBRARY = "tensorrt_rtx"
DEFAULT_CAPABILITIES = (80, 86, 89, 120)
DEFAULT_CONTEXT = 4096
# Any device of the library: its compute capability is replaced.
_TARGET = "l40s-48gb"
_GROUP = 128
_INPUT_SCALE = 0.05
_STORAGES = {
    "fp16": Storage("fp16"),
    "int4": Storage("int4", _GROUP),
    "fp8": Storage("fp8", activations="fp8", algorithm="max"),
    "int8": Storage("int8", activations="int8-static", algorithm="max"),
}
# What the tower and the decoder are built in; lm_head and embedding stay in 16 bits, as in the recipes.
FORMS: dict[Part, tuple[str, ...]] = {"vision": ("fp16", "int8", "fp8"), "llm": ("fp16", "int4", "fp8")}
_QUANTIZED_PARTS = ("vision", "projector", "language")


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One plan, or why there is none. weights: bytes of the weights that went in."""

    part: Part
    form: str
    sm: int
    weights: int
    bytes: int = 0
    seconds: float = 0
    cpu_seconds: float = 0
    peak_bytes: int = 0
    version: str = ""
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        return asdict(self)


class RandomCodes(ModelWeights):
    """A checkpoint whose matrices are quantized when they are asked for, with inputs of one made-up scale."""

    def __init__(self, checkpoint: Path, form: str) -> None:
        super().__init__(CheckpointReader(checkpoint))
        self._codec = weight_codec(_STORAGES[form].format)

    def codes(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CodeReader.codes`."""
        weight_NK = self.read(name, torch.float32)
        return self._codec.factors(self._codec.pack(weight_NK, self._codec.amax(weight_NK)))

    def input_scale(self, name: str) -> torch.Tensor | None:
        """See `CodeReader.input_scale`."""
        return torch.tensor(_INPUT_SCALE)

    def pre_quant_scale(self, name: str) -> torch.Tensor | None:
        """See `CodeReader.pre_quant_scale`."""
        return None


def bench_plans(
    shape: str | ModelShape,
    capabilities: Sequence[int],
    context: int,
    directory: Path,
    progress: ProgressCallback,
    forms: Mapping[Part, Sequence[str]] = FORMS,
) -> Iterator[PlanRow]:
    """Compile both parts of a shape in all `forms` for every compute capability; yield rows as they come.

    Raises:
        UsageError: an unknown shape.
        UnsuitableError: TensorRT-RTX is not installed.
        NvlmError: it refuses a graph.
    """
    if isinstance(shape, str) and shape not in SHAPES:
        raise UsageError(f"there is no shape '{shape}'", hint=did_you_mean(shape, SHAPES))
    sizes = SHAPES[shape] if isinstance(shape, str) else shape
    checkpoint = directory / "checkpoint"
    write_random_checkpoint(released_style_config(sizes), checkpoint)
    jobs = [(part, form) for part in forms for form in forms[part]]
    for number, (part, form) in enumerate(jobs, start=1):
        yield from _rows(checkpoint, part, form, capabilities, context, directory)
        progress("plans", number, len(jobs))


def _rows(
    checkpoint: Path, part: Part, form: str, capabilities: Sequence[int], context: int, directory: Path
) -> Iterator[PlanRow]:
    """One graph, written once and compiled for every capability."""
    weights = (
        RandomCodes(checkpoint, form)
        if form in ("int8", "fp8")
        else ModelWeights(CheckpointReader(checkpoint))
    )
    plan, config = _plan(weights, form), weights.reader.config
    size = sum(plan.stored_bytes(t.name) for t in plan.tensors.values() if t.part in PARTS[part])
    graph = _graph(weights, plan, part, context)
    source = directory / f"{part}-{form}.onnx"
    write_model(graph.model, source)
    for sm in capabilities:
        target = _target(sm)
        try:
            check_plan(LIBRARY, config, plan, EngineSettings(context, target))
        except UnsuitableError as error:
            yield PlanRow(part, form, sm, size, refused=error.message)
            continue
        output = directory / f"{part}-{form}-{sm}.plan"
        made = compile_graph(graph.job(LIBRARY, target, source, output))
        output.unlink()
        yield PlanRow(part, form, sm, size, **asdict(made))
    source.with_name(source.name + ".data").unlink()


def _graph(weights: ModelWeights, plan: QuantizationPlan, part: Part, context: int) -> PartGraph:
    settings = EngineSettings(context, _target(DEFAULT_CAPABILITIES[-1]))
    graphs = part_graphs(LIBRARY, weights, weights.reader.config, plan, settings)
    return next(graph for graph in graphs if graph.part == part)


def _target(sm: int) -> Target:
    return load_target(_TARGET, ["backend=" + LIBRARY, f"sm={sm}"])


def _plan(weights: ModelWeights, form: str) -> QuantizationPlan:
    """All matrices of tower, projector and decoder in one form, the rest in 16 bits."""
    tensors = {}
    for name in weights.names():
        shape, part = tuple(weights.shape(name)), name.split(".", 1)[0]
        matrix = len(shape) == 2 and not name.endswith("position_embedding")
        if name.startswith(("language.embed_tokens", "language.lm_head")):
            part = "lm_head" if "lm_head" in name else "embedding"
        quantized = matrix and part in _QUANTIZED_PARTS
        storage = _STORAGES[form] if quantized else Storage("fp16")
        tensors[name] = TensorPlan(name, name, shape, part, matrix, storage)
    return QuantizationPlan(form, "fp16", tensors)
