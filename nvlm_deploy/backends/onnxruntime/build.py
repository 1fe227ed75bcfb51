"""Build an ONNX Runtime engine: the vision and decoder graphs of one checkpoint under one plan."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from nvlm_deploy.backends.onnxruntime.lower import lower
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.export import Progress, WeightReader, build_decoder, build_vision, write_model
from nvlm_deploy.quantization.plan import QuantizationPlan

logger = logging.getLogger(__name__)

# Where a graph keeps what its bundle was made of.
RECORD_KEY = "nvlm.record"

VISION_PATH = "vision/vision.onnx"
DECODER_PATH = "llm/decoder.onnx"

# Called after every piece: the part ("vision" or "llm"), the tensor, bytes written, bytes in all.
BuildProgress = Callable[[str, str, int, int], None]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the target decides, and what the graphs are to say of themselves.

    context_length: tokens of prompt and answer together. record: JSON; see `GraphFacts`.
    """

    context_length: int
    record: Mapping[str, Any] | None = None


def check(config: NvlmConfig, plan: QuantizationPlan, settings: EngineSettings) -> None:
    """Find out before the first second of work what this backend cannot do.

    Raises:
        UnsuitableError: names what is asked for and what there is.
    """
    if plan.kv_cache != "fp32":
        raise UnsuitableError(
            f"recipe {plan.recipe}: kv_cache is {plan.kv_cache}, and ONNX Runtime's CPU attention takes fp32",
            hint="use --set kv_cache=fp32",
        )
    limit = config.language.max_position_embeddings
    if not 1 <= settings.context_length <= limit:
        raise UnsuitableError(
            f"a context of {settings.context_length} tokens is outside this model's [1, {limit}]"
        )


def build_engine(
    weights: WeightReader,
    config: NvlmConfig,
    plan: QuantizationPlan,
    settings: EngineSettings,
    output: Path,
    progress: BuildProgress | None = None,
) -> dict[str, Any]:
    """Write `vision/` and `llm/` below `output` and describe them for the manifest.

    Memory: one piece of one tensor; nothing of the checkpoint stays loaded.

    Returns:
        The manifest's sections `vision` and `llm`.

    Raises:
        UnsuitableError: see `check`.
        NvlmError: the disk is full, or a weight cannot be stored as planned.
    """
    check(config, plan, settings)
    vision = lower(build_vision(config, weights, plan))
    decoder = lower(build_decoder(config.language, weights, plan, settings.context_length))
    sections = {
        "vision": _describe_vision(config, vision),
        "llm": _describe_decoder(config, decoder, settings),
    }
    if settings.record is not None:
        for model in (vision, decoder):
            model.metadata_props[RECORD_KEY] = json.dumps(settings.record, ensure_ascii=False)
    for part, path, model in (("vision", VISION_PATH, vision), ("llm", DECODER_PATH, decoder)):
        target = output / path
        target.parent.mkdir(parents=True, exist_ok=True)
        logger.info("writing %s", target)
        write_model(model, target, _for_part(progress, part))
    return sections


def _for_part(progress: BuildProgress | None, part: str) -> Progress | None:
    if progress is None:
        return None
    return lambda name, done, total: progress(part, name, done, total)


def _describe_vision(config: NvlmConfig, model: ir.Model) -> dict[str, Any]:
    return {
        "model": VISION_PATH,
        "data": f"{VISION_PATH}.data",
        "inputs": _describe_values(model.graph.inputs),
        "outputs": _describe_values(model.graph.outputs),
        "tile_size": config.tile_size,
        "visual_tokens_per_tile": config.visual_tokens_per_tile,
        "hidden_size": config.language.hidden_size,
    }


def _describe_decoder(config: NvlmConfig, model: ir.Model, settings: EngineSettings) -> dict[str, Any]:
    language = config.language
    cache = ("past_key.", "past_value.", "present_key.", "present_value.")
    return {
        "model": DECODER_PATH,
        "data": f"{DECODER_PATH}.data",
        "inputs": _describe_values(v for v in model.graph.inputs if not str(v.name).startswith(cache)),
        "outputs": _describe_values(v for v in model.graph.outputs if not str(v.name).startswith(cache)),
        "kv_cache": {
            "past": ["past_key.{layer}", "past_value.{layer}"],
            "present": ["present_key.{layer}", "present_value.{layer}"],
            "layers": language.num_layers,
            "dtype": "float32",
            "shape": ["batch", language.num_kv_heads, "capacity", language.head_dim],
            "in_place": True,
        },
        "context_length": settings.context_length,
        "hidden_size": language.hidden_size,
        "vocab_size": language.vocab_size,
    }


def _describe_values(values: Iterable[ir.Value]) -> dict[str, dict[str, Any]]:
    """Names to types and shapes; texts in a shape are free dimensions."""
    described = {}
    for value in values:
        dtype = ir.DataType(value.dtype or ir.DataType.UNDEFINED).numpy()
        shape = [size if isinstance(size, int) else str(size) for size in value.shape or ()]
        described[str(value.name)] = {"dtype": str(dtype), "shape": shape}
    return described
