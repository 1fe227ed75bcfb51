"""The matrices and single tensors of a decoder layer in a TensorRT-LLM checkpoint, and what they are made of.

Gated cross-attention is the module `cross` of a layer. Queries and keys with values are matrices of their
own, unlike in TensorRT-LLM's `Attention`: text and tiles come at different scales, so they are quantized
apart, and keys and values of tiles need no queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nvlm_deploy.config.cross_attention import CrossAttentionConfig


@dataclass(frozen=True, slots=True)
class Fused:
    """One matrix of TensorRT-LLM and the ones that it is made of, by the names within a layer.

    "column" matrices are divided by output features, "row" matrices by input features.
    """

    name: str
    sources: tuple[str, ...]
    parallel: Literal["column", "row"]

    @property
    def in_mlp(self) -> bool:
        """Whether one of its widths is the inner width of an MLP."""
        return "mlp." in self.name


@dataclass(frozen=True, slots=True)
class Single:
    """A tensor of a layer that every rank has, by the names within a layer; `size` numbers.

    Gates stay FP32: they are one number, and all that a block adds is multiplied with it.
    """

    source: str
    target: str
    size: int


FUSED = (
    Fused("attention.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "column"),
    Fused("attention.dense", ("self_attn.o_proj",), "row"),
    Fused("mlp.fc", ("mlp.gate_proj",), "column"),
    Fused("mlp.gate", ("mlp.up_proj",), "column"),
    Fused("mlp.proj", ("mlp.down_proj",), "row"),
)
_CROSS = (
    Fused("cross.attention.q", ("cross_attn.q_proj",), "column"),
    Fused("cross.attention.kv", ("cross_attn.k_proj", "cross_attn.v_proj"), "column"),
    Fused("cross.attention.dense", ("cross_attn.o_proj",), "row"),
)
_CROSS_MLP = (
    Fused("cross.mlp.fc", ("cross_attn_mlp.gate_proj",), "column"),
    Fused("cross.mlp.gate", ("cross_attn_mlp.up_proj",), "column"),
    Fused("cross.mlp.proj", ("cross_attn_mlp.down_proj",), "row"),
)
# What the released names of biases are added to.
_BIASED_SELF = ("attention.qkv",)
_BIASED_CROSS = ("cross.attention.q", "cross.attention.kv")
GATES = ("cross.gate_attn", "cross.gate_ffwd")


def matrices_of(cross: CrossAttentionConfig | None, layer: int) -> tuple[Fused, ...]:
    """All matrices of a decoder layer."""
    if cross is None or layer not in cross.layers:
        return FUSED
    return (*FUSED, *_CROSS, *(_CROSS_MLP if cross.gated_mlp else ()))


def singles_of(cross: CrossAttentionConfig | None, layer: int, hidden: int) -> Iterator[Single]:
    """Norms and gates of a decoder layer."""
    yield Single("input_layernorm.weight", "input_layernorm.weight", hidden)
    yield Single("post_attention_layernorm.weight", "post_layernorm.weight", hidden)
    if cross is None or layer not in cross.layers:
        return
    yield Single("cross_attn_layernorm.weight", "cross.input_layernorm.weight", hidden)
    if cross.kv_norm:
        yield Single("cross_attn_kv_layernorm.weight", "cross.kv_layernorm.weight", hidden)
    yield Single("cross_attn_gate", GATES[0], 1)
    if cross.gated_mlp:
        yield Single("cross_attn_mlp_layernorm.weight", "cross.post_layernorm.weight", hidden)
        yield Single("cross_attn_mlp_gate", GATES[1], 1)


def biased(fused: Fused, qkv_bias: bool, cross: CrossAttentionConfig | None) -> bool:
    """Whether a matrix has a bias."""
    if fused.name in _BIASED_SELF:
        return qkv_bias
    return cross is not None and cross.qkv_bias and fused.name in _BIASED_CROSS


@dataclass(frozen=True, slots=True)
class CacheRows:
    """Where layers keep keys and values: TensorRT-LLM's runtime counts each attention as a layer.

    Its one decoder with cross-attention, MLLaMA, has rows without a cache of its own sequence, and others
    without one of tiles; both caches then have a pool of heads and one of none. self_rows: row of every
    decoder layer. cross_rows: of every layer with cross-attention.
    """

    self_rows: tuple[int, ...]
    cross_rows: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.self_rows) + len(self.cross_rows)

    @classmethod
    def of(cls, cross: CrossAttentionConfig, num_layers: int) -> CacheRows:
        """Number the rows in the order of computation."""
        self_rows, cross_rows, row = [], [], 0
        for layer in range(num_layers):
            attends = layer in cross.layers
            first = attends and cross.placement == "before_layer"
            self_rows.append(row + first)
            if attends:
                cross_rows.append(row + (not first))
            row += 1 + attends
        return cls(tuple(self_rows), tuple(cross_rows))

    def heads(self, self_heads: int, cross_heads: int) -> tuple[list[int], list[int]]:
        """KV heads of every row: of the sequence, and of tiles."""
        cross = set(self.cross_rows)
        rows = range(self.count)
        return [0 if row in cross else self_heads for row in rows], [
            cross_heads if row in cross else 0 for row in rows
        ]
