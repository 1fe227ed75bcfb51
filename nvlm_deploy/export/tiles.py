"""The tiles graph of NVLM-X and NVLM-H: visual tokens of an image to keys and values for cross-attention.

It runs once per image. Input: `visual_tokens` float32 [C, V, D] of the C tiles of one image that go to
cross-attention, in order. Outputs: `tile_key.N` and `tile_value.N` [G, L, K] of every layer N with
cross-attention, and `tiles` int64 [L], the tile of each entry, from 0, or -1 for padding.

Shapes: V visual tokens per tile, D hidden size, T tokens of the longest tag (NVLM-H; others are padded),
E entries of a tile (its tag and its visual tokens), L = C * E, G KV heads, K head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.export.cross import TILE_KINDS
from nvlm_deploy.export.dialect import DATA_TYPES, STANDARD_VISION, Dialect
from nvlm_deploy.export.graph import GraphBuilder
from nvlm_deploy.export.initializers import add_initializer
from nvlm_deploy.export.matrices import Array, WeightReader, read_float32
from nvlm_deploy.export.operators import rms_norm
from nvlm_deploy.export.weights import StreamedTensor, WeightSource
from nvlm_deploy.quantization.plan import EMBEDDING, QuantizationPlan

Tags = Sequence[Sequence[int]]
"""Token ids of `<tile_1>`, `<tile_2>`, ... for NVLM-H; empty for NVLM-X, whose tags are text."""


def build_tiles(
    config: NvlmConfig,
    weights: WeightReader,
    plan: QuantizationPlan,
    tags: Tags = (),
    dialect: Dialect = STANDARD_VISION,
) -> ir.Model:
    """Build the graph; weights stay lazy. `tags` are those of as many tiles as an image can have."""
    cross = config.cross_attention
    assert cross is not None, "an NVLM-D has no cross-attention"
    builder = GraphBuilder("nvlm_tiles", WeightSource(weights, plan), dialect)
    visual_CVD = builder.input(
        "visual_tokens",
        ir.DataType.FLOAT,
        ["tiles", config.visual_tokens_per_tile, config.language.hidden_size],
    )
    count = builder.op("tiles.count", "Shape", [visual_CVD], start=0, end=1)
    entries = _Entries(builder, cross, visual_CVD, _Tags(builder, tags, count) if tags else None)
    for layer in cross.layers:
        features = entries.features(layer, config.language.norm_eps)
        for kind, value in zip(TILE_KINDS, _states(builder, cross, layer, features), strict=True):
            shape: list[int | str] = [cross.num_kv_heads, "entries", cross.head_dim]
            builder.output(value, f"tile_{kind}.{layer}", DATA_TYPES[builder.floats], shape)
    numbers = _numbers(builder, config.visual_tokens_per_tile, count, entries.tags)
    builder.output(numbers, "tiles", ir.DataType.INT64, ["entries"])
    return builder.model({"nvlm.part": "tiles"})


class _Tags:
    """The embeddings of the tags of C tiles, and which of their T places are used."""

    def __init__(self, builder: GraphBuilder, tags: Tags, count: ir.Value) -> None:
        self.length = max(len(ids) for ids in tags)
        self.used = np.array([[i < len(ids) for i in range(self.length)] for ids in tags])
        self._builder, self._count = builder, count
        source = builder.source

        def rows() -> Iterator[Array]:
            for ids in tags:
                padded = np.zeros((self.length, source.weights.shape(EMBEDDING)[1]), np.float32)
                padded[: len(ids)] = _embeddings(source, ids)
                yield padded

        def means() -> Iterator[Array]:
            for ids in tags:
                yield _embeddings(source, ids).mean(axis=0, keepdims=True)

        width, key = source.weights.shape(EMBEDDING)[1], tuple(tuple(ids) for ids in tags)
        shape = (len(tags), self.length, width)
        self._rows = StreamedTensor(ir.DataType.FLOAT, shape, rows, ("tags", key))
        self._means = StreamedTensor(ir.DataType.FLOAT, (len(tags), 1, width), means, ("tag means", key))

    def rows_CTD(self) -> ir.Value:
        """Embeddings, zeros where a tag is shorter."""
        return self.first("tags", add_initializer(self._builder.graph, "tags.embeddings", self._rows))

    def means_C1D(self) -> ir.Value:
        """The mean of each tag's embeddings."""
        return self.first("tags.means", add_initializer(self._builder.graph, "tags.mean", self._means))

    def first(self, name: str, table: ir.Value) -> ir.Value:
        """The first C rows of a table."""
        integers = self._builder.integers
        value: ir.Value = self._builder.op(name, "Slice", [table, integers(0), self._count, integers(0)])
        return value


class _Entries:
    """What keys and values are made of: tiles, with their tags before them in NVLM-H."""

    def __init__(
        self, builder: GraphBuilder, config: CrossAttentionConfig, visual_CVD: ir.Value, tags: _Tags | None
    ) -> None:
        self._builder, self._config, self.tags = builder, config, tags
        self._raw, self._parts = visual_CVD, [_size(visual_CVD)]
        if tags is None:
            return
        rows = [tags.rows_CTD(), visual_CVD]
        self._parts = [tags.length, *self._parts]
        if config.bind_tags:
            rows.append(tags.means_C1D())
            self._parts.append(1)
        self._raw = builder.op("tiles.features", "Concat", rows, axis=1)

    def features(self, layer: int, epsilon: float) -> ir.Value:
        """[C, E, D], normalized, with the mean of a tag added to the visual tokens of its tile if asked."""
        builder, name = self._builder, f"language.layers.{layer}.cross"
        normed = self._raw
        if self._config.kv_norm:
            normed = rms_norm(builder, f"{name}.kv_norm", self._raw, epsilon, builder.floats)
        if self.tags is None or not self._config.bind_tags:
            return normed
        tags, visual, mean = builder.op(
            f"{name}.parts", "Split", [normed, builder.integers(*self._parts)], outputs=3, axis=1
        )
        bound = builder.op(f"{name}.bound", "Add", [visual, mean])
        features: ir.Value = builder.op(f"{name}.entries", "Concat", [tags, bound], axis=1)
        return features


def _size(visual_CVD: ir.Value) -> int:
    size = None if visual_CVD.shape is None else visual_CVD.shape[1]
    assert isinstance(size, int), "a tile has a known number of visual tokens"
    return size


def _states(
    builder: GraphBuilder, config: CrossAttentionConfig, layer: int, features_CED: ir.Value
) -> list[ir.Value]:
    """Keys and values of one layer, [G, L, K] each."""
    made = []
    for kind in ("k", "v"):
        name = f"language.layers.{layer}.cross.attention.{kind}"
        flat = builder.linear(f"{name}_proj", features_CED, bias=config.qkv_bias)
        shape = builder.integers(-1, config.num_kv_heads, config.head_dim)
        split = builder.op(f"{name}.split", "Reshape", [flat, shape])
        made.append(builder.op(f"{name}.heads", "Transpose", [split], perm=[1, 0, 2]))
    return made


def _numbers(builder: GraphBuilder, visual: int, count: ir.Value, tags: _Tags | None) -> ir.Value:
    """The tile of every entry, int64 [L]."""
    op = builder.op
    zero, one = (builder.constant(f"int64.scalar.{n}", np.int64(n)) for n in (0, 1))
    numbers_C = op("tiles.numbers", "Range", [zero, op("tiles.limit", "Squeeze", [count]), one])
    numbers_C1 = op("tiles.column", "Unsqueeze", [numbers_C, builder.integers(1)])
    if tags is None:
        numbers_CE = op("tiles.entries", "Expand", [numbers_C1, builder.integers(1, visual)])
    else:
        used = np.concatenate([tags.used, np.ones((len(tags.used), visual), np.bool_)], axis=1)
        used_CE = tags.first("tiles.used", builder.constant("tags.used", used))
        padding = builder.constant("int64.padding", np.int64(-1))
        numbers_CE = op("tiles.entries", "Where", [used_CE, numbers_C1, padding])
    flat: ir.Value = op("tiles.flat", "Reshape", [numbers_CE, builder.integers(-1)])
    return flat


def _embeddings(source: WeightSource, ids: Sequence[int]) -> NDArray[np.float32]:
    """Rows of the embedding, float32 [T, D], in full precision whatever the recipe: they are few."""
    return np.concatenate([read_float32(source.weights, EMBEDDING, i, i + 1) for i in ids])
