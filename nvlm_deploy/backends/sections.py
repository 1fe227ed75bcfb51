"""What a manifest says of an engine's parts, whoever made them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

from nvlm_deploy.config.model import NvlmConfig

_CACHE = ("past_key.", "past_value.", "present_key.", "present_value.", "new_key.", "new_value.")


def vision_section(config: NvlmConfig, graph: ir.Model, **files: str) -> dict[str, Any]:
    """The manifest's section `vision`; `files` are paths in the bundle by their role."""
    return {
        **files,
        "inputs": _describe(graph.graph.inputs),
        "outputs": _describe(graph.graph.outputs),
        "tile_size": config.tile_size,
        "visual_tokens_per_tile": config.visual_tokens_per_tile,
        "hidden_size": config.language.hidden_size,
    }


def decoder_section(
    config: NvlmConfig, graph: ir.Model, context_length: int, *, in_place: bool = True, **files: str
) -> dict[str, Any]:
    """The manifest's section `llm`. Without `in_place` the graph gives back new keys and values alone."""
    language = config.language
    written = "present" if in_place else "new"
    past = next(value for value in graph.graph.inputs if value.name == "past_key.0")
    return {
        **files,
        "inputs": _describe(v for v in graph.graph.inputs if not str(v.name).startswith(_CACHE)),
        "outputs": _describe(v for v in graph.graph.outputs if not str(v.name).startswith(_CACHE)),
        "kv_cache": {
            "past": ["past_key.{layer}", "past_value.{layer}"],
            written: [f"{written}_key.{{layer}}", f"{written}_value.{{layer}}"],
            "layers": language.num_layers,
            **_describe_one(past),
            "in_place": in_place,
        },
        "context_length": context_length,
        "hidden_size": language.hidden_size,
        "vocab_size": language.vocab_size,
    }


def _describe(values: Iterable[ir.Value]) -> dict[str, dict[str, Any]]:
    """Names to types and shapes; texts in a shape are free dimensions."""
    return {str(value.name): _describe_one(value) for value in values}


def _describe_one(value: ir.Value) -> dict[str, Any]:
    dtype = ir.DataType(value.dtype or ir.DataType.UNDEFINED).numpy()
    shape = [size if isinstance(size, int) else str(size) for size in value.shape or ()]
    return {"dtype": str(dtype), "shape": shape}
