"""The decoder graph: token ids and visual tokens to logits, with the KV cache as inputs and outputs.

Shapes: B rows of the batch, S new tokens per row (right-padded), C cache capacity, P logit positions,
V visual tokens of the whole batch, D hidden size, H query heads, G KV heads, K head size.

`past_lengths` int32 [B] tokens are in the cache already, and `new_lengths` int32 [B] of the S new ones are
no padding. Padding may leave garbage behind a row's end in the cache; the next tokens overwrite it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nvlm_deploy.config.model import LanguageConfig
from nvlm_deploy.export.graph import GraphBuilder
from nvlm_deploy.export.matrices import WeightReader
from nvlm_deploy.export.weights import WeightSource
from nvlm_deploy.quantization.plan import EMBEDDING, QuantizationPlan

CONTEXT_KEY = "nvlm.context_length"

# The first with TensorScatter.
_OPSET = 24


@dataclass(frozen=True, slots=True)
class _Positions:
    """What every layer's attention needs to know about the new tokens."""

    ids_BS: ir.Value
    write_B: ir.Value
    mask_B1SC: ir.Value
    cos: ir.Value
    sin: ir.Value


def build_decoder(
    config: LanguageConfig, weights: WeightReader, plan: QuantizationPlan, context_length: int
) -> ir.Model:
    """Build the standard graph for at most `context_length` tokens per row; weights stay lazy."""
    builder = GraphBuilder("nvlm_decoder", WeightSource(weights, plan), _OPSET)
    x_BSD = _embed(builder, config)
    positions, caches = _inputs(builder, config, context_length)
    for layer, past in enumerate(caches):
        x_BSD = _layer(builder, config, layer, x_BSD, past, positions)
    logits = _logits(builder, config, x_BSD)
    builder.output(logits, "logits", ir.DataType.FLOAT, ["batch", "positions", config.vocab_size])
    for layer in range(config.num_layers):
        for kind in ("key", "value"):
            present = builder.graph.node(f"present_{kind}.{layer}/TensorScatter").outputs[0]
            builder.output(present, f"present_{kind}.{layer}", ir.DataType.FLOAT, _cache_shape(config))
    return builder.model({"nvlm.part": "decoder", CONTEXT_KEY: str(context_length)})


def rotary_tables(config: LanguageConfig, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, float32 [length, K / 2], of plain rotary embeddings, as HF computes them in FP32."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
    angles = np.outer(np.arange(length, dtype=np.float32), frequencies)
    return np.cos(angles), np.sin(angles)


def _cache_shape(config: LanguageConfig) -> list[int | str]:
    return ["batch", config.num_kv_heads, "capacity", config.head_dim]


def _embed(builder: GraphBuilder, config: LanguageConfig) -> ir.Value:
    """Look token embeddings up and overwrite the placeholders' rows with visual tokens."""
    ids = builder.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    visual = builder.input("visual_tokens", ir.DataType.FLOAT, ["visual", config.hidden_size])
    index = builder.input("visual_index", ir.DataType.INT64, ["visual", 2])
    rows = builder.embedding("language.embed_tokens", EMBEDDING, ids)
    embeds: ir.Value = builder.op("language.embeddings", "ScatterND", [rows, index, visual])
    return embeds


def _inputs(
    builder: GraphBuilder, config: LanguageConfig, context_length: int
) -> tuple[_Positions, list[tuple[ir.Value, ir.Value]]]:
    """Declare the other inputs and derive the positions and the mask from the rows' lengths."""
    past_B = builder.input("past_lengths", ir.DataType.INT32, ["batch"])
    new_B = builder.input("new_lengths", ir.DataType.INT32, ["batch"])
    builder.input("logit_positions", ir.DataType.INT64, ["batch", "positions"])
    kinds = ("past_key", "past_value")
    caches = [
        [builder.input(f"{k}.{layer}", ir.DataType.FLOAT, _cache_shape(config)) for k in kinds]
        for layer in range(config.num_layers)
    ]
    ids_BS, write_B = _token_positions(builder, past_B, context_length)
    cos, sin = rotary_tables(config, context_length)
    positions = _Positions(
        ids_BS=ids_BS,
        write_B=write_B,
        mask_B1SC=_mask(builder, ids_BS, write_B, new_B, caches[0][0]),
        cos=builder.constant("language.rotary_cos", cos),
        sin=builder.constant("language.rotary_sin", sin),
    )
    return positions, [(key, value) for key, value in caches]


def _token_positions(
    builder: GraphBuilder, past_B: ir.Value, context_length: int
) -> tuple[ir.Value, ir.Value]:
    """Absolute positions [B, S] and the place of each row's first new token [B], int64."""
    write_B = builder.op("positions.write", "Cast", [past_B], to=ir.DataType.INT64)
    first_B1 = builder.op("positions.first", "Unsqueeze", [write_B, builder.integers(1)])
    zero, one = (builder.constant(f"positions.{n}", np.int64(n)) for n in (0, 1))
    ids = builder.graph.inputs[0]
    length = builder.op("positions.length", "Shape", [ids], start=1, end=2)
    scalar = builder.op("positions.count", "Squeeze", [length])
    steps_S = builder.op("positions.steps", "Range", [zero, scalar, one])
    raw_BS = builder.op("positions.unbounded", "Add", [first_B1, steps_S])
    # Padding may stand behind the last position that has a rotation.
    last = builder.constant("positions.last", np.int64(context_length - 1))
    return builder.op("positions.ids", "Min", [raw_BS, last]), write_B


def _mask(
    builder: GraphBuilder, ids_BS: ir.Value, write_B: ir.Value, new_B: ir.Value, cache: ir.Value
) -> ir.Value:
    """Boolean [B, 1, S, C]: causal, and nothing behind the row's last valid token."""
    capacity = builder.op(
        "mask.capacity", "Squeeze", [builder.op("mask.dims", "Shape", [cache], start=2, end=3)]
    )
    zero, one = (builder.constant(f"positions.{n}", np.int64(n)) for n in (0, 1))
    slots_C = builder.op("mask.slots", "Range", [zero, capacity, one])
    query_B1S1 = builder.op("mask.query", "Unsqueeze", [ids_BS, builder.integers(1, 3)])
    causal = builder.op("mask.causal", "LessOrEqual", [slots_C, query_B1S1])
    new64_B = builder.op("mask.new", "Cast", [new_B], to=ir.DataType.INT64)
    total_B = builder.op("mask.total", "Add", [write_B, new64_B])
    total_B111 = builder.op("mask.end", "Unsqueeze", [total_B, builder.integers(1, 2, 3)])
    valid = builder.op("mask.valid", "Less", [slots_C, total_B111])
    mask: ir.Value = builder.op("mask", "And", [causal, valid])
    return mask


def _layer(
    builder: GraphBuilder,
    config: LanguageConfig,
    layer: int,
    x_BSD: ir.Value,
    past: tuple[ir.Value, ir.Value],
    positions: _Positions,
) -> ir.Value:
    name = f"language.layers.{layer}"
    normed = _rms_norm(builder, config, f"{name}.input_norm", x_BSD)
    mixed = _attention(builder, config, layer, normed, past, positions)
    x_BSD = builder.op(f"{name}.attention.sum", "Add", [x_BSD, mixed])
    normed = _rms_norm(builder, config, f"{name}.post_attention_norm", x_BSD)
    gate = builder.op(f"{name}.mlp.silu", "Swish", [builder.linear(f"{name}.mlp.gate_proj", normed)])
    hidden = builder.op(f"{name}.mlp.gated", "Mul", [gate, builder.linear(f"{name}.mlp.up_proj", normed)])
    total: ir.Value = builder.op(
        f"{name}.mlp.sum", "Add", [x_BSD, builder.linear(f"{name}.mlp.down_proj", hidden)]
    )
    return total


def _attention(
    builder: GraphBuilder,
    config: LanguageConfig,
    layer: int,
    x_BSD: ir.Value,
    past: tuple[ir.Value, ir.Value],
    positions: _Positions,
) -> ir.Value:
    """Write the new keys and values into the cache, then attend to it."""
    name = f"language.layers.{layer}.attention"

    def heads(kind: str, count: int) -> ir.Value:
        flat = builder.linear(f"{name}.{kind}_proj", x_BSD, bias=config.qkv_bias)
        shape = builder.integers(0, 0, count, config.head_dim)
        split = builder.op(f"{name}.{kind}.split", "Reshape", [flat, shape])
        value: ir.Value = builder.op(f"{name}.{kind}.heads", "Transpose", [split], perm=[0, 2, 1, 3])
        return value

    def rotate(kind: str, x: ir.Value) -> ir.Value:
        inputs = [x, positions.cos, positions.sin, positions.ids_BS]
        value: ir.Value = builder.op(f"{name}.{kind}.rotated", "RotaryEmbedding", inputs)
        return value

    q_BHSK = rotate("q", heads("q", config.num_heads))
    k_BGSK = rotate("k", heads("k", config.num_kv_heads))
    v_BGSK = heads("v", config.num_kv_heads)
    write = positions.write_B
    keys = builder.op(f"present_key.{layer}", "TensorScatter", [past[0], k_BGSK, write], axis=-2)
    values = builder.op(f"present_value.{layer}", "TensorScatter", [past[1], v_BGSK, write], axis=-2)
    mixed = builder.op(name, "Attention", [q_BHSK, keys, values, positions.mask_B1SC])
    joined = builder.op(f"{name}.joined", "Transpose", [mixed], perm=[0, 2, 1, 3])
    flat = builder.op(f"{name}.flat", "Reshape", [joined, builder.integers(0, 0, config.q_size)])
    return builder.linear(f"{name}.o_proj", flat)


def _logits(builder: GraphBuilder, config: LanguageConfig, x_BSD: ir.Value) -> ir.Value:
    """Norm and `lm_head` on the positions that are asked for, and no others."""
    wanted = next(v for v in builder.graph.inputs if v.name == "logit_positions")
    index = builder.op("logits.index", "Unsqueeze", [wanted, builder.integers(2)])
    x_BPD = builder.op("logits.hidden", "GatherND", [x_BSD, index], batch_dims=1)
    return builder.linear("language.lm_head", _rms_norm(builder, config, "language.norm", x_BPD))


def _rms_norm(builder: GraphBuilder, config: LanguageConfig, name: str, x: ir.Value) -> ir.Value:
    weight = builder.parameter(f"{name}.weight")
    value: ir.Value = builder.op(name, "RMSNormalization", [x, weight], axis=-1, epsilon=config.norm_eps)
    return value
