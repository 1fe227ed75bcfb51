"""Operators that older sets lack: each as itself where the dialect has it, else written out.

Shapes: B rows of the batch, H query heads, G KV heads, S new tokens, L tokens attended to, K head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from nvlm_deploy.export.dialect import FloatType

if TYPE_CHECKING:
    from nvlm_deploy.export.graph import GraphBuilder

# Far below every score, and within the range of FP16.
_HIDDEN = -30000.0
_REDUCE_AXES_ARE_INPUTS = 18


@dataclass(frozen=True, slots=True)
class Heads:
    """Numbers of query and KV heads, and their size."""

    queries: int
    kv: int
    size: int


def rms_norm(builder: GraphBuilder, name: str, x: ir.Value, epsilon: float, source: FloatType) -> ir.Value:
    """RMSNorm over the last axis, statistics in FP32: from the type `source` to the builder's."""
    target = builder.floats
    weight = f"{name}.weight"
    if builder.dialect.has("RMSNormalization"):
        with builder.computing_in(source):
            y = builder.op(name, "RMSNormalization", [x, builder.parameter(weight)], axis=-1, epsilon=epsilon)
        return builder.cast(f"{name}.typed", y, source, target)
    op = builder.op
    wide = builder.cast(f"{name}.wide", x, source, "fp32")
    squares = op(f"{name}.squares", "Mul", [wide, wide])
    mean = _last_mean(builder, f"{name}.mean", squares)
    kept = op(f"{name}.kept", "Add", [mean, builder.constant(f"epsilon.{epsilon:g}", np.float32(epsilon))])
    normed = op(f"{name}.normed", "Div", [wide, op(f"{name}.root", "Sqrt", [kept])])
    value: ir.Value = op(
        name,
        "Mul",
        [builder.cast(f"{name}.typed", normed, "fp32", target), builder.parameter(weight)],
    )
    return value


def gelu(builder: GraphBuilder, name: str, x: ir.Value) -> ir.Value:
    """The exact GELU: x / 2 (1 + erf(x / sqrt 2))."""
    if builder.dialect.has("Gelu"):
        value: ir.Value = builder.op(name, "Gelu", [x], approximate="none")
        return value
    op = builder.op
    scaled = op(f"{name}.scaled", "Mul", [x, builder.number(math.sqrt(0.5))])
    gate = op(f"{name}.gate", "Add", [op(f"{name}.erf", "Erf", [scaled]), builder.number(1)])
    half = op(f"{name}.half", "Mul", [x, builder.number(0.5)])
    value = op(name, "Mul", [half, gate])
    return value


def swish(builder: GraphBuilder, name: str, x: ir.Value) -> ir.Value:
    """x sigmoid(x)."""
    if builder.dialect.has("Swish"):
        value: ir.Value = builder.op(name, "Swish", [x])
        return value
    value = builder.op(name, "Mul", [x, builder.op(f"{name}.gate", "Sigmoid", [x])])
    return value


@dataclass(frozen=True, slots=True)
class Rotary:
    """The rotations of the new tokens.

    As operator: tables [length, K / 2] and the positions [B, S]. Written out: the cosines and sines of the
    new tokens [B, 1, S, K / 2] and no positions.
    """

    cos: ir.Value
    sin: ir.Value
    positions_BS: ir.Value | None

    @classmethod
    def of(cls, builder: GraphBuilder, cos: ir.Value, sin: ir.Value, positions_BS: ir.Value) -> Rotary:
        """Take tables in the builder's type; rows are looked up once for all layers."""
        if builder.dialect.has("RotaryEmbedding"):
            return cls(cos, sin, positions_BS)
        rows = []
        for name, table in (("cos", cos), ("sin", sin)):
            found = builder.op(f"positions.{name}.rows", "Gather", [table, positions_BS], axis=0)
            rows.append(builder.op(f"positions.{name}", "Unsqueeze", [found, builder.integers(1)]))
        return cls(rows[0], rows[1], None)


def rotate(builder: GraphBuilder, name: str, x_BHSK: ir.Value, rotary: Rotary, size: int) -> ir.Value:
    """Rotate the pairs (i, i + K / 2) of every head."""
    if rotary.positions_BS is not None:
        inputs = [x_BHSK, rotary.cos, rotary.sin, rotary.positions_BS]
        value: ir.Value = builder.op(name, "RotaryEmbedding", inputs)
        return value
    op, half = builder.op, builder.integers(size // 2, size // 2)
    first, second = op(f"{name}.halves", "Split", [x_BHSK, half], outputs=2, axis=-1)
    cos, sin = rotary.cos, rotary.sin
    left = op(
        f"{name}.left",
        "Sub",
        [op(f"{name}.first_cos", "Mul", [first, cos]), op(f"{name}.second_sin", "Mul", [second, sin])],
    )
    right = op(
        f"{name}.right",
        "Add",
        [op(f"{name}.second_cos", "Mul", [second, cos]), op(f"{name}.first_sin", "Mul", [first, sin])],
    )
    value = op(name, "Concat", [left, right], axis=-1)
    return value


def attention(
    builder: GraphBuilder,
    name: str,
    qkv: tuple[ir.Value, ir.Value, ir.Value],
    heads: Heads,
    mask: ir.Value | None = None,
) -> ir.Value:
    """Attention over heads [B, H, S, K] and [B, G, L, K]; `mask` is that of `attention_mask`."""
    q_BHSK, k_BGLK, v_BGLK = qkv
    if builder.dialect.has_attention(builder.floats):
        inputs = [*qkv] if mask is None else [*qkv, mask]
        value: ir.Value = builder.op(name, "Attention", inputs)
        return value
    op = builder.op
    # Scaled before the product, which may be large.
    q_BHSK = op(f"{name}.q.scaled", "Mul", [q_BHSK, builder.number(1 / math.sqrt(heads.size))])
    if heads.queries != heads.kv:
        k_BGLK = _repeated(builder, f"{name}.k", k_BGLK, heads)
        v_BGLK = _repeated(builder, f"{name}.v", v_BGLK, heads)
    keys_BHKL = op(f"{name}.k.columns", "Transpose", [k_BGLK], perm=[0, 1, 3, 2])
    scores_BHSL = op(f"{name}.scores", "MatMul", [q_BHSK, keys_BHKL])
    if mask is not None:
        scores_BHSL = op(f"{name}.masked", "Add", [scores_BHSL, mask])
    shares_BHSL = op(f"{name}.shares", "Softmax", [scores_BHSL], axis=-1)
    value = op(name, "MatMul", [shares_BHSL, v_BGLK])
    return value


def attention_mask(builder: GraphBuilder, visible: ir.Value) -> ir.Value:
    """What `attention` takes of `visible`, boolean [B, 1, S, L]: itself, or what is added to scores."""
    if builder.dialect.has_attention(builder.floats):
        return visible
    added: ir.Value = builder.op("mask.added", "Where", [visible, builder.number(0), builder.number(_HIDDEN)])
    return added


def split_heads(builder: GraphBuilder, name: str, x: ir.Value, count: int, size: int) -> ir.Value:
    """[B, S, H * K] -> [B, H, S, K]."""
    split = builder.op(f"{name}.split", "Reshape", [x, builder.integers(0, 0, count, size)])
    value: ir.Value = builder.op(f"{name}.heads", "Transpose", [split], perm=[0, 2, 1, 3])
    return value


def join_heads(builder: GraphBuilder, name: str, x_BHSK: ir.Value, width: int) -> ir.Value:
    """[B, H, S, K] -> [B, S, H * K]."""
    joined = builder.op(f"{name}.joined", "Transpose", [x_BHSK], perm=[0, 2, 1, 3])
    value: ir.Value = builder.op(f"{name}.flat", "Reshape", [joined, builder.integers(0, 0, width)])
    return value


def _repeated(builder: GraphBuilder, name: str, x_BGLK: ir.Value, heads: Heads) -> ir.Value:
    """Give every query head its keys or values: [B, H, L, K]. Engines recognize attention in this form."""
    repeats = builder.integers(1, 1, heads.queries // heads.kv, 1, 1)
    apart = builder.op(f"{name}.apart", "Unsqueeze", [x_BGLK, builder.integers(2)])
    repeated = builder.op(f"{name}.repeated", "Expand", [apart, repeats])
    shape = builder.integers(0, heads.queries, -1, heads.size)
    value: ir.Value = builder.op(f"{name}.all_heads", "Reshape", [repeated, shape])
    return value


def _last_mean(builder: GraphBuilder, name: str, x: ir.Value) -> ir.Value:
    if builder.dialect.opset < _REDUCE_AXES_ARE_INPUTS:
        value: ir.Value = builder.op(name, "ReduceMean", [x], axes=[-1], keepdims=1)
    else:
        value = builder.op(name, "ReduceMean", [x, builder.integers(-1)], keepdims=1)
    return value
