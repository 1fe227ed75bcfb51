"""The vision graph: RGB tiles to visual tokens (InternViT, pixel shuffle and projector of NVLM-D).

Input: `tiles` uint8 [tiles, S, S, 3]. Output: `visual_tokens` float32 [tiles, tokens, D].

Blocks may compute in types of their own (`Dialect.exceptions`): the stream that all layers add to, the
attention and the MLP of each layer, the projector.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nvlm_deploy.config.model import NvlmConfig, VisionConfig
from nvlm_deploy.export.dialect import PROJECTOR, STANDARD_VISION, STREAM, Dialect
from nvlm_deploy.export.graph import GraphBuilder
from nvlm_deploy.export.matrices import WeightReader
from nvlm_deploy.export.operators import Heads, attention, gelu, join_heads, rms_norm, split_heads
from nvlm_deploy.export.weights import WeightSource
from nvlm_deploy.preprocess.tiles import IMAGENET_MEAN, IMAGENET_STD
from nvlm_deploy.quantization.plan import QuantizationPlan


def build_vision(
    config: NvlmConfig, weights: WeightReader, plan: QuantizationPlan, dialect: Dialect = STANDARD_VISION
) -> ir.Model:
    """Build the standard graph of tower, pixel shuffle and projector; weights stay lazy."""
    builder = GraphBuilder("nvlm_vision", WeightSource(weights, plan), dialect)
    vision, side = config.vision, config.tile_size
    tiles = builder.input("tiles", ir.DataType.UINT8, ["tiles", side, side, vision.num_channels])
    stream, pixels = dialect.of(STREAM), _normalize(builder, tiles)
    with builder.computing_in(dialect.patches):
        patches = _patches(builder, vision, builder.cast("vision.typed", pixels, "fp32", dialect.patches))
    with builder.computing_in(stream):
        x = _sequence(builder, vision, builder.cast("vision.cast", patches, dialect.patches, stream))
        for layer in range(vision.num_layers):
            x = _layer(builder, vision, f"vision.layers.{layer}", x)
        x = _pixel_shuffle(builder, vision, x)
        normed = _projector_norm(builder, config, x)
    with builder.computing_in(dialect.of(PROJECTOR)):
        tokens = _project(builder, builder.cast("projector.input", normed, stream, builder.floats))
        tokens = builder.cast("projector.output", tokens, builder.floats, "fp32")
    shape: list[int | str] = ["tiles", config.visual_tokens_per_tile, config.language.hidden_size]
    builder.output(tokens, "visual_tokens", ir.DataType.FLOAT, shape)
    return builder.model({"nvlm.part": "vision"})


def _normalize(builder: GraphBuilder, tiles: ir.Value) -> ir.Value:
    """uint8 [T, S, S, 3] -> normalized float32 [T, 3, S, S]."""
    rgb = builder.op("vision.rgb", "Cast", [tiles], to=ir.DataType.FLOAT)
    unit = builder.op("vision.unit", "Div", [rgb, builder.constant("vision.255", np.float32(255))])
    mean = builder.constant("vision.mean", np.array(IMAGENET_MEAN, np.float32))
    std = builder.constant("vision.std", np.array(IMAGENET_STD, np.float32))
    centered = builder.op("vision.centered", "Sub", [unit, mean])
    scaled = builder.op("vision.scaled", "Div", [centered, std])
    pixels: ir.Value = builder.op("vision.pixels", "Transpose", [scaled], perm=[0, 3, 1, 2])
    return pixels


def _patches(builder: GraphBuilder, config: VisionConfig, pixels: ir.Value) -> ir.Value:
    """[T, 3, S, S] -> [T, patches, C]: the patch convolution."""
    name, width, size = "vision.patch_embedding", config.hidden_size, config.patch_size
    weight = builder.parameter(f"{name}.weight")
    inputs = [pixels, weight, builder.parameter(f"{name}.bias")]
    grid = builder.op(name, "Conv", inputs, kernel_shape=[size, size], strides=[size, size])
    flat = builder.op("vision.flat", "Reshape", [grid, builder.integers(0, width, -1)])
    patches: ir.Value = builder.op("vision.patches", "Transpose", [flat], perm=[0, 2, 1])
    return patches


def _sequence(builder: GraphBuilder, config: VisionConfig, patches: ir.Value) -> ir.Value:
    """[T, patches, C] -> [T, 1 + patches, C]: class token first, position embedding."""
    width = config.hidden_size
    count = builder.op("vision.tile_count", "Shape", [patches], start=0, end=1)
    class_shape = builder.op("vision.class_shape", "Concat", [count, builder.integers(1, width)], axis=0)
    token = builder.parameter("vision.class_embedding", (1, 1, width))
    tokens = builder.op("vision.class_tokens", "Expand", [token, class_shape])
    sequence = builder.op("vision.sequence", "Concat", [tokens, patches], axis=1)
    positions = builder.parameter("vision.position_embedding")
    embedded: ir.Value = builder.op("vision.embedded", "Add", [sequence, positions])
    return embedded


def _layer(builder: GraphBuilder, config: VisionConfig, name: str, x: ir.Value) -> ir.Value:
    """Pre-norm attention and MLP, each with a learned scale per channel."""
    stream = builder.floats
    with builder.computing_in(builder.dialect.of(f"{name}.attention")):
        normed = rms_norm(builder, f"{name}.norm1", x, config.norm_eps, stream)
        mixed = _attention(builder, config, f"{name}.attention", normed)
        branch = builder.floats
    x = _add_scaled(builder, f"{name}.layer_scale1", x, builder.cast(f"{name}.mixed", mixed, branch, stream))
    with builder.computing_in(builder.dialect.of(f"{name}.mlp")):
        normed = rms_norm(builder, f"{name}.norm2", x, config.norm_eps, stream)
        active = gelu(builder, f"{name}.mlp.gelu", builder.linear(f"{name}.mlp.fc1", normed, bias=True))
        y = builder.linear(f"{name}.mlp.fc2", active, bias=True)
        branch = builder.floats
    return _add_scaled(builder, f"{name}.layer_scale2", x, builder.cast(f"{name}.out", y, branch, stream))


def _attention(builder: GraphBuilder, config: VisionConfig, name: str, x: ir.Value) -> ir.Value:
    """Attention over all positions; q and k are normalized over all heads jointly."""
    floats, epsilon = builder.floats, config.norm_eps
    q = rms_norm(builder, f"{name}.q_norm", builder.linear(f"{name}.q_proj", x), epsilon, floats)
    k = rms_norm(builder, f"{name}.k_norm", builder.linear(f"{name}.k_proj", x), epsilon, floats)
    v = builder.linear(f"{name}.v_proj", x)
    heads, size = config.num_heads, config.head_dim
    if builder.dialect.has_attention(floats) and floats == "fp32":
        mixed = builder.op(name, "Attention", [q, k, v], q_num_heads=heads, kv_num_heads=heads)
    else:
        parts = [
            split_heads(builder, f"{name}.{n}", part, heads, size)
            for n, part in zip("qkv", (q, k, v), strict=True)
        ]
        whole = attention(builder, name, (parts[0], parts[1], parts[2]), Heads(heads, heads, size))
        mixed = join_heads(builder, name, whole, config.hidden_size)
    return builder.linear(f"{name}.out_proj", mixed, bias=True)


def _add_scaled(builder: GraphBuilder, name: str, x: ir.Value, branch: ir.Value) -> ir.Value:
    scaled = builder.op(f"{name}.scaled", "Mul", [branch, builder.parameter(name)])
    value: ir.Value = builder.op(f"{name}.sum", "Add", [x, scaled])
    return value


def _pixel_shuffle(builder: GraphBuilder, config: VisionConfig, x: ir.Value) -> ir.Value:
    """Drop the class token and merge 2 x 2 patches: [T, 1 + patches, C] -> [T, patches / 4, 4 C].

    The channels of cell (r, c) are those of patches (2r, 2c), (2r, 2c+1), (2r+1, 2c), (2r+1, 2c+1).
    """
    half, width = config.patches_per_side // 2, config.hidden_size
    ends = [builder.integers(1), builder.integers(config.num_positions), builder.integers(1)]
    patches = builder.op("projector.patches", "Slice", [x, *ends])
    rows = builder.op("projector.rows", "Reshape", [patches, builder.integers(-1, half, 2, half, 2 * width)])
    cells = builder.op("projector.cells", "Transpose", [rows], perm=[0, 1, 3, 2, 4])
    merged = builder.integers(-1, half * half, 4 * width)
    shuffled: ir.Value = builder.op("projector.shuffled", "Reshape", [cells, merged])
    return shuffled


def _projector_norm(builder: GraphBuilder, config: NvlmConfig, x: ir.Value) -> ir.Value:
    inputs = [x, builder.parameter("projector.norm.weight"), builder.parameter("projector.norm.bias")]
    epsilon = config.projector_norm_eps
    value: ir.Value = builder.op("projector.norm", "LayerNormalization", inputs, axis=-1, epsilon=epsilon)
    return value


def _project(builder: GraphBuilder, normed: ir.Value) -> ir.Value:
    hidden = builder.linear("projector.fc1", normed)
    return builder.linear("projector.fc2", gelu(builder, "projector.gelu", hidden))
