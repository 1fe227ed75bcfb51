"""The decoder graph: token ids and visual tokens to logits, with the KV cache as inputs and outputs.

Shapes: B rows of the batch, S new tokens per row (right-padded), C cache capacity, P logit positions,
V visual tokens of the whole batch, D hidden size, H query heads, G KV heads, K head size, L tokens that
attention sees: C, or C + S where the new ones are put behind the cache.

`past_lengths` int32 [B] tokens are in the cache already, and `new_lengths` int32 [B] of the S new ones are
no padding. Padding may leave garbage behind a row's end in the cache; the next tokens overwrite it.

Where the dialect scatters into the cache, `present_key.N` is the whole cache, to be given the memory of
`past_key.N`. Where it concatenates, `new_key.N` are the new tokens [B, G, S, K], and the caller writes them
at `past_lengths` of each row: nothing of the cache is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nvlm_deploy.config.model import LanguageConfig
from nvlm_deploy.export.dialect import DATA_TYPES, STANDARD_DECODER, Dialect
from nvlm_deploy.export.graph import GraphBuilder
from nvlm_deploy.export.matrices import WeightReader
from nvlm_deploy.export.operators import (
    Heads,
    Rotary,
    attention,
    attention_mask,
    join_heads,
    rms_norm,
    rotate,
    split_heads,
    swish,
)
from nvlm_deploy.export.weights import WeightSource
from nvlm_deploy.quantization.plan import EMBEDDING, QuantizationPlan

CONTEXT_KEY = "nvlm.context_length"
KINDS = ("key", "value")


@dataclass(frozen=True, slots=True)
class _Positions:
    """What every layer's attention needs to know about the new tokens."""

    write_B: ir.Value
    mask: ir.Value
    rotary: Rotary


def build_decoder(
    config: LanguageConfig,
    weights: WeightReader,
    plan: QuantizationPlan,
    context_length: int,
    dialect: Dialect = STANDARD_DECODER,
) -> ir.Model:
    """Build the graph for at most `context_length` tokens per row; weights stay lazy."""
    builder = GraphBuilder("nvlm_decoder", WeightSource(weights, plan), dialect)
    x_BSD = _embed(builder, config)
    positions, caches = _inputs(builder, config, context_length)
    news = []
    for layer, past in enumerate(caches):
        x_BSD, new = _layer(builder, config, layer, x_BSD, past, positions)
        news.append(new)
    logits = builder.cast("logits.wide", _logits(builder, config, x_BSD), builder.floats, "fp32")
    builder.output(logits, "logits", ir.DataType.FLOAT, ["batch", "positions", config.vocab_size])
    scatters = dialect.cache == "scatter"
    for layer, new in enumerate(news):
        for kind, value in zip(KINDS, new, strict=True):
            name = f"{'present' if scatters else 'new'}_{kind}.{layer}"
            shape = _cache_shape(config, _capacity(dialect, context_length) if scatters else "sequence")
            builder.output(value, name, DATA_TYPES[dialect.floats], shape)
    return builder.model({"nvlm.part": "decoder", CONTEXT_KEY: str(context_length)})


def rotary_tables(config: LanguageConfig, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, float32 [length, K / 2], of plain rotary embeddings, as HF computes them in FP32."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
    angles = np.outer(np.arange(length, dtype=np.float32), frequencies)
    return np.cos(angles), np.sin(angles)


def _capacity(dialect: Dialect, context_length: int) -> int | str:
    return context_length if dialect.static_cache else "capacity"


def _cache_shape(config: LanguageConfig, length: int | str) -> list[int | str]:
    return ["batch", config.num_kv_heads, length, config.head_dim]


def _embed(builder: GraphBuilder, config: LanguageConfig) -> ir.Value:
    """Look token embeddings up and put visual tokens into the placeholders' rows."""
    ids = builder.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    given = builder.input("visual_tokens", ir.DataType.FLOAT, ["visual", config.hidden_size])
    visual = builder.cast("language.visual", given, "fp32", builder.floats)
    rows = builder.embedding("language.embed_tokens", EMBEDDING, ids)
    if builder.dialect.visual == "scatter":
        index = builder.input("visual_index", ir.DataType.INT64, ["visual", 2])
        embeds: ir.Value = builder.op("language.embeddings", "ScatterND", [rows, index, visual])
        return embeds
    # -1 for text: it takes the first row, which is then not chosen.
    index = builder.input("visual_rows", ir.DataType.INT64, ["batch", "sequence"])
    zero = builder.constant("positions.0", np.int64(0))
    found = builder.op("language.visual_index", "Max", [index, zero])
    taken = builder.op("language.visual_rows", "Gather", [visual, found], axis=0)
    is_text = builder.op("language.is_text", "Less", [index, zero])
    mask = builder.op("language.text_mask", "Unsqueeze", [is_text, builder.integers(2)])
    embeds = builder.op("language.embeddings", "Where", [mask, rows, taken])
    return embeds


def _inputs(
    builder: GraphBuilder, config: LanguageConfig, context_length: int
) -> tuple[_Positions, list[tuple[ir.Value, ir.Value]]]:
    """Declare the other inputs and derive the positions and the mask from the rows' lengths."""
    past_B = builder.input("past_lengths", ir.DataType.INT32, ["batch"])
    new_B = builder.input("new_lengths", ir.DataType.INT32, ["batch"])
    builder.input("logit_positions", ir.DataType.INT64, ["batch", "positions"])
    dtype = DATA_TYPES[builder.dialect.floats]
    shape = _cache_shape(config, _capacity(builder.dialect, context_length))
    caches = [
        [builder.input(f"past_{kind}.{layer}", dtype, shape) for kind in KINDS]
        for layer in range(config.num_layers)
    ]
    ids_BS, write_B = _token_positions(builder, past_B, context_length)
    cos, sin = rotary_tables(config, context_length)
    visible = _visible(builder, ids_BS, write_B, new_B, caches[0][0])
    positions = _Positions(
        write_B=write_B,
        mask=attention_mask(builder, visible),
        rotary=Rotary.of(
            builder,
            builder.floats_constant("language.rotary_cos", cos),
            builder.floats_constant("language.rotary_sin", sin),
            ids_BS,
        ),
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


def _visible(
    builder: GraphBuilder, ids_BS: ir.Value, write_B: ir.Value, new_B: ir.Value, cache: ir.Value
) -> ir.Value:
    """Boolean [B, 1, S, L]: causal, and nothing behind the row's last valid token."""
    op = builder.op
    capacity = op("mask.capacity", "Squeeze", [op("mask.dims", "Shape", [cache], start=2, end=3)])
    zero, one = (builder.constant(f"positions.{n}", np.int64(n)) for n in (0, 1))
    slots_C = op("mask.slots", "Range", [zero, capacity, one])
    new64_B = op("mask.new", "Cast", [new_B], to=ir.DataType.INT64)
    if builder.dialect.cache == "scatter":
        query_B1S1 = op("mask.query", "Unsqueeze", [ids_BS, builder.integers(1, 3)])
        causal = op("mask.causal", "LessOrEqual", [slots_C, query_B1S1])
        total_B = op("mask.total", "Add", [write_B, new64_B])
        total_B111 = op("mask.end", "Unsqueeze", [total_B, builder.integers(1, 2, 3)])
        valid = op("mask.valid", "Less", [slots_C, total_B111])
        mask: ir.Value = op("mask", "And", [causal, valid])
        return mask
    past_B111 = op("mask.past", "Unsqueeze", [write_B, builder.integers(1, 2, 3)])
    cached_B11C = op("mask.cached", "Less", [slots_C, past_B111])
    # Only shapes are taken of the positions, so that both parts get the shape [B, 1, S, ...].
    steps_S = _steps(builder)
    steps_S1 = op("mask.steps", "Unsqueeze", [steps_S, builder.integers(1)])
    causal_SS = op("mask.causal", "LessOrEqual", [steps_S, steps_S1])
    new_B111 = op("mask.end", "Unsqueeze", [new64_B, builder.integers(1, 2, 3)])
    recent_B1SS = op("mask.recent", "And", [causal_SS, op("mask.valid", "Less", [steps_S, new_B111])])
    always_S1 = op("mask.always", "Equal", [steps_S1, steps_S1])
    cached_B1SC = op("mask.cached_rows", "And", [cached_B11C, always_S1])
    mask = op("mask", "Concat", [cached_B1SC, recent_B1SS], axis=-1)
    return mask


def _steps(builder: GraphBuilder) -> ir.Value:
    """0, 1, ... of the new tokens, int64 [S]."""
    made = builder.graph.node("positions.steps/Range").outputs[0]
    return made


def _layer(
    builder: GraphBuilder,
    config: LanguageConfig,
    layer: int,
    x_BSD: ir.Value,
    past: tuple[ir.Value, ir.Value],
    positions: _Positions,
) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
    """One layer's result, and what it has for the cache."""
    name, floats = f"language.layers.{layer}", builder.floats
    normed = rms_norm(builder, f"{name}.input_norm", x_BSD, config.norm_eps, floats)
    mixed, new = _attention(builder, config, layer, normed, past, positions)
    x_BSD = builder.op(f"{name}.attention.sum", "Add", [x_BSD, mixed])
    normed = rms_norm(builder, f"{name}.post_attention_norm", x_BSD, config.norm_eps, floats)
    gate = swish(builder, f"{name}.mlp.silu", builder.linear(f"{name}.mlp.gate_proj", normed))
    hidden = builder.op(f"{name}.mlp.gated", "Mul", [gate, builder.linear(f"{name}.mlp.up_proj", normed)])
    total: ir.Value = builder.op(
        f"{name}.mlp.sum", "Add", [x_BSD, builder.linear(f"{name}.mlp.down_proj", hidden)]
    )
    return total, new


def _attention(
    builder: GraphBuilder,
    config: LanguageConfig,
    layer: int,
    x_BSD: ir.Value,
    past: tuple[ir.Value, ir.Value],
    positions: _Positions,
) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
    """Attend to the cache and to the new keys and values, and return what the cache gets."""
    name, op, heads = f"language.layers.{layer}.attention", builder.op, _heads(config)

    def projected(kind: str, count: int) -> ir.Value:
        flat = builder.linear(f"{name}.{kind}_proj", x_BSD, bias=config.qkv_bias)
        return split_heads(builder, f"{name}.{kind}", flat, count, config.head_dim)

    rotary = positions.rotary
    q_BHSK = rotate(builder, f"{name}.q.rotated", projected("q", heads.queries), rotary, heads.size)
    k_BGSK = rotate(builder, f"{name}.k.rotated", projected("k", heads.kv), rotary, heads.size)
    v_BGSK = projected("v", heads.kv)
    if builder.dialect.cache == "scatter":
        write = positions.write_B
        keys = op(f"present_key.{layer}", "TensorScatter", [past[0], k_BGSK, write], axis=-2)
        values = op(f"present_value.{layer}", "TensorScatter", [past[1], v_BGSK, write], axis=-2)
        new = keys, values
    else:
        keys = op(f"{name}.k.all", "Concat", [past[0], k_BGSK], axis=2)
        values = op(f"{name}.v.all", "Concat", [past[1], v_BGSK], axis=2)
        new = k_BGSK, v_BGSK
    mixed = attention(builder, name, (q_BHSK, keys, values), heads, positions.mask)
    return builder.linear(f"{name}.o_proj", join_heads(builder, name, mixed, config.q_size)), new


def _heads(config: LanguageConfig) -> Heads:
    return Heads(config.num_heads, config.num_kv_heads, config.head_dim)


def _logits(builder: GraphBuilder, config: LanguageConfig, x_BSD: ir.Value) -> ir.Value:
    """Norm and `lm_head` on the positions that are asked for, and no others."""
    wanted = next(v for v in builder.graph.inputs if v.name == "logit_positions")
    index = builder.op("logits.index", "Unsqueeze", [wanted, builder.integers(2)])
    x_BPD = builder.op("logits.hidden", "GatherND", [x_BSD, index], batch_dims=1)
    return builder.linear(
        "language.lm_head", rms_norm(builder, "language.norm", x_BPD, config.norm_eps, builder.floats)
    )
