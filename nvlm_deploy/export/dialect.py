"""Dialects: the same graph in another operator set, in another float type, with another way of its cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import onnx_ir as ir

FloatType = Literal["fp32", "fp16", "bf16"]

# The blocks of a vision tower that are not numbered: the stream that all layers add to, and what follows.
STREAM = "vision.stream"
PROJECTOR = "projector"

DATA_TYPES: dict[FloatType, ir.DataType] = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
# The operator sets that a graph is written in, each with the file format version that came with it.
_IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 11}
# Operators that became standard late; where they are missing, older ones compute the same.
_SINCE = {
    "Gelu": 20,
    "Attention": 23,
    "RMSNormalization": 23,
    "RotaryEmbedding": 23,
    "Swish": 24,
    "TensorScatter": 24,
}
_FP8_SINCE = 19
_BLOCKS_SINCE = 21
_BF16_CONV_SINCE = 22


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a graph is written.

    opset: of the standard domain, 17 to 24. A runtime's oldest release decides.
    floats: what it computes in. Inputs and outputs other than the cache are FP32 in all dialects.
    cache: `scatter` writes new keys and values into the cache and needs opset 24; `concat` puts them behind
        the cache for attention, and gives back the new ones alone, which the caller writes.
    static_cache: the cache always has room for the whole context, which its shape says.
    visual: `scatter` overwrites the embeddings at listed places; `select` takes a row for every token, and
        has no empty tensors.
    decomposed: operators that are written out although the operator set has them.
    half_attention: attention in FP32 is written out: TensorRT's kernels are for 16 bits.
    exceptions: blocks that compute in another type, by name: `vision.stream`, `vision.layers.N.attention`,
        `vision.layers.N.mlp`, `projector`.
    """

    opset: int
    floats: FloatType = "fp32"
    cache: Literal["scatter", "concat"] = "scatter"
    static_cache: bool = False
    visual: Literal["scatter", "select"] = "scatter"
    decomposed: frozenset[str] = frozenset()
    half_attention: bool = False
    exceptions: Mapping[str, FloatType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.opset not in _IR_VERSIONS:
            raise ValueError(f"graphs are written in opsets {min(_IR_VERSIONS)} to {max(_IR_VERSIONS)}")

    @property
    def ir_version(self) -> int:
        """Version of the file format, as old as the operator set."""
        return _IR_VERSIONS[self.opset]

    @property
    def has_blocks(self) -> bool:
        """Whether weights may have a scale for each group of inputs, and with it INT4."""
        return self.opset >= _BLOCKS_SINCE

    @property
    def has_fp8(self) -> bool:
        """Whether numbers may be stored in FP8."""
        return self.opset >= _FP8_SINCE

    @property
    def patches(self) -> FloatType:
        """What the convolution over patches computes in: the type of the stream, if convolutions have it."""
        stream = self.of(STREAM)
        return "fp32" if stream == "bf16" and self.opset < _BF16_CONV_SINCE else stream

    def has(self, operator: str) -> bool:
        """Whether an operator is used as such."""
        return operator not in self.decomposed and self.opset >= _SINCE[operator]

    def has_attention(self, floats: FloatType) -> bool:
        """Whether attention in a type is one operator."""
        return self.has("Attention") and not (self.half_attention and floats == "fp32")

    def of(self, block: str) -> FloatType:
        """What a block computes in."""
        return self.exceptions.get(block, self.floats)

    def twin(self) -> Dialect:
        """The same graph in FP32, for runtimes that do not compute in the other types."""
        return replace(self, floats="fp32", exceptions={}, half_attention=False)


# What ONNX Runtime's passes start from: the first opsets with the operators that they look for.
STANDARD_VISION = Dialect(23)
STANDARD_DECODER = Dialect(24)
