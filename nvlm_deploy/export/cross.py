"""Gated cross-attention in the decoder graph: from text to tiles whose keys and values are inputs.

Shapes: B rows of the batch, S new tokens per row, L entries of the tiles of a row, D hidden size, H query
heads, G KV heads, K head size.

`tile_key.N` and `tile_value.N` [B, G, L, K] are what the graph of `export.tiles` makes of images, row by row,
for every layer N with cross-attention. `tiles` int64 [B, L] says which tile of its row an entry belongs to
(-1: padding), and `visible_tiles` int64 [B, S, 2] that token s of row b sees tiles [first, end) of its row.

With L = 0 the blocks are not computed. What a block adds for a token that sees nothing is exactly 0.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.config.model import LanguageConfig
from nvlm_deploy.export.dialect import DATA_TYPES
from nvlm_deploy.export.graph import GraphBuilder
from nvlm_deploy.export.operators import (
    Heads,
    attention,
    attention_mask,
    join_heads,
    rms_norm,
    split_heads,
    swish,
)

TILE_KINDS = ("key", "value")


class CrossBlock:
    """The blocks of one graph: declares its inputs, and adds a block where a layer has one."""

    def __init__(self, builder: GraphBuilder, config: CrossAttentionConfig, language: LanguageConfig) -> None:
        self._builder, self._config, self._language = builder, config, language
        self._heads = Heads(config.num_heads, config.num_kv_heads, config.head_dim)
        shape: list[int | str] = ["batch", config.num_kv_heads, "entries", config.head_dim]
        dtype = DATA_TYPES[builder.dialect.floats]
        self._states = {
            layer: [builder.input(f"tile_{kind}.{layer}", dtype, shape) for kind in TILE_KINDS]
            for layer in config.layers
        }
        tiles_BL = builder.input("tiles", ir.DataType.INT64, ["batch", "entries"])
        visible_BS2 = builder.input("visible_tiles", ir.DataType.INT64, ["batch", "sequence", 2])
        self._any = _is_there(builder, tiles_BL)
        self._sees_BS1, self._mask = _masks(builder, tiles_BL, visible_BS2)

    def before_layer(self, layer: int, x_BSD: ir.Value) -> ir.Value:
        """Add the block in front of a layer, if it has one there."""
        return self._added(layer, x_BSD) if self._config.placement == "before_layer" else x_BSD

    def after_self_attention(self, layer: int, x_BSD: ir.Value) -> ir.Value:
        """Add the block behind a layer's self-attention, if it has one there."""
        return self._added(layer, x_BSD) if self._config.placement == "after_self_attention" else x_BSD

    def _added(self, layer: int, x_BSD: ir.Value) -> ir.Value:
        if layer not in self._states:
            return x_BSD
        name, op = f"language.layers.{layer}.cross", self._builder.op

        def nothing() -> ir.Value:
            shape = op(f"{name}.nothing.shape", "Shape", [x_BSD])
            zero = ir.tensor(np.zeros(1, DATA_TYPES[self._builder.floats].numpy()))
            zeros: ir.Value = op(f"{name}.nothing", "ConstantOfShape", [shape], value=zero)
            return zeros

        # The branches make what is added and not the sum, which then stays part of the next norm's kernel.
        block = partial(self._block, name, layer, x_BSD)
        added = self._builder.choose(f"{name}.added", self._any, block, nothing)
        total: ir.Value = op(f"{name}.sum", "Add", [x_BSD, added])
        return total

    def _block(self, name: str, layer: int, x_BSD: ir.Value) -> ir.Value:
        """What one block adds, [B, S, D]."""
        builder, op = self._builder, self._builder.op
        attended = op(f"{name}.seen", "Mul", [self._attention(name, layer, x_BSD), self._sees_BS1])
        added: ir.Value = op(f"{name}.gated", "Mul", [attended, self._gate(f"{name}.gate")])
        if not self._config.gated_mlp:
            return added
        x_BSD = op(f"{name}.mlp.input", "Add", [x_BSD, added])
        normed = rms_norm(builder, f"{name}.mlp_norm", x_BSD, self._language.norm_eps, builder.floats)
        gate = swish(builder, f"{name}.mlp.silu", builder.linear(f"{name}.mlp.gate_proj", normed))
        hidden = op(f"{name}.mlp.product", "Mul", [gate, builder.linear(f"{name}.mlp.up_proj", normed)])
        made = builder.linear(f"{name}.mlp.down_proj", hidden)
        seen = op(f"{name}.mlp.seen", "Mul", [made, self._sees_BS1])
        gated = op(f"{name}.mlp.gated", "Mul", [seen, self._gate(f"{name}.mlp_gate")])
        added = op(f"{name}.both", "Add", [added, gated])
        return added

    def _attention(self, name: str, layer: int, x_BSD: ir.Value) -> ir.Value:
        builder, config, heads = self._builder, self._config, self._heads
        normed = rms_norm(builder, f"{name}.norm", x_BSD, self._language.norm_eps, builder.floats)
        name = f"{name}.attention"
        q_BSC = builder.linear(f"{name}.q_proj", normed, bias=config.qkv_bias)
        q_BHSK = split_heads(builder, f"{name}.q", q_BSC, heads.queries, heads.size)
        keys, values = self._states[layer]
        mixed = attention(builder, name, (q_BHSK, keys, values), heads, self._mask)
        return builder.linear(f"{name}.o_proj", join_heads(builder, name, mixed, config.q_size))

    def _gate(self, name: str) -> ir.Value:
        value: ir.Value = self._builder.op(f"{name}.open", "Tanh", [self._builder.parameter(name)])
        return value


def _is_there(builder: GraphBuilder, tiles_BL: ir.Value) -> ir.Value:
    """Whether any row has a tile, a boolean scalar."""
    entries = builder.op("tiles.entries", "Shape", [tiles_BL], start=1, end=2)
    count = builder.op("tiles.count", "Squeeze", [entries])
    zero = builder.constant("positions.0", np.int64(0))
    there: ir.Value = builder.op("tiles.there", "Greater", [count, zero])
    return there


def _masks(builder: GraphBuilder, tiles_BL: ir.Value, visible_BS2: ir.Value) -> tuple[ir.Value, ir.Value]:
    """What each token sees: 1 or 0 for anything at all [B, S, 1], and the mask of attention [B, 1, S, L].

    A softmax over nothing is no number: tokens that see nothing attend to everything, and get 0 behind it.
    """
    op = builder.op
    tiles_B1L = op("tiles.row", "Unsqueeze", [tiles_BL, builder.integers(1)])
    first_BS1, end_BS1 = op("tiles.bounds", "Split", [visible_BS2, builder.integers(1, 1)], outputs=2, axis=2)
    begun = op("tiles.begun", "GreaterOrEqual", [tiles_B1L, first_BS1])
    inside = op("tiles.inside", "And", [begun, op("tiles.not_ended", "Less", [tiles_B1L, end_BS1])])
    sees = op("tiles.sees", "Less", [first_BS1, end_BS1])
    allowed = op("tiles.allowed", "Or", [inside, op("tiles.blind", "Not", [sees])])
    visible = op("tiles.mask", "Unsqueeze", [allowed, builder.integers(1)])
    factor = op("tiles.seen", "Cast", [sees], to=DATA_TYPES[builder.floats])
    return factor, attention_mask(builder, visible, "tiles.added")
