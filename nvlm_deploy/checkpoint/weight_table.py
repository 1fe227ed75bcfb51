"""The weight table: every tensor of the released layout, and what the model makes of it.

Source of names, shapes and dtypes: the weight index of nvidia/NVLM-D-72B and its modelling code.
The vision tower's attention is padded on disk with seven heads of zeros behind the real ones; the
model has the real heads only. The released files mix dtypes: the attention tensors that were
re-assembled from a training checkpoint are FP32, all others BF16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from nvlm_deploy.checkpoint.operations import Operation, Reshape, Slice, Split
from nvlm_deploy.checkpoint.rules import Rule, RuleTable, Shape
from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.config.model import LanguageConfig, NvlmConfig, VisionConfig

# Recomputed from the config; older llama-style checkpoints carry it.
_DROPPED = ("language_model.model.layers.*.self_attn.rotary_emb.inv_freq",)

_VISION_LAYER = "vision_model.encoder.layers.{n}."
_LANGUAGE_LAYER = "language_model.model.layers.{n}."


@dataclass(frozen=True, slots=True)
class ReleasedTensor:
    """One tensor as it stands on disk, and the rule that leads from it to the model."""

    name: str
    shape: Shape
    targets: tuple[str, ...]
    operations: tuple[Operation, ...] = ()
    dtype: torch.dtype = torch.bfloat16

    @property
    def rule(self) -> Rule:
        return Rule((self.name,), self.targets, self.operations)

    def at(self, layer: int) -> ReleasedTensor:
        """The tensor with the layer number filled in for `{n}`."""
        rule = self.rule.at(layer)
        return replace(self, name=rule.sources[0], targets=rule.targets)


def released_tensors(config: NvlmConfig) -> tuple[ReleasedTensor, ...]:
    """All tensors of the released layout, in canonical order: vision, projector, language."""
    vision, language = config.vision, config.language
    return (
        *_vision_embeddings(vision),
        *(row.at(layer) for layer in range(vision.num_layers) for row in _vision_layer(vision)),
        *_projector(config),
        *_language_ends(language),
        *(row.at(layer) for layer in range(language.num_layers) for row in _layer_rows(config, layer)),
    )


def expected_tensors(config: NvlmConfig) -> dict[str, Shape]:
    """Shapes on disk by released name, dummy heads included. 1,556 tensors for NVLM-D-72B."""
    return {tensor.name: tensor.shape for tensor in released_tensors(config)}


def model_table(config: NvlmConfig) -> RuleTable:
    """Rules from the released layout to the names of `nvlm_deploy.models`.

    The inverse table pads the vision attention with zero heads again.
    """
    return RuleTable((tensor.rule for tensor in released_tensors(config)), drops=_DROPPED)


def model_shapes(config: NvlmConfig) -> dict[str, Shape]:
    """Shapes of the model's parameters by name, without dummy heads."""
    return model_table(config).target_shapes(expected_tensors(config))


def _vision_embeddings(vision: VisionConfig) -> list[ReleasedTensor]:
    width, positions, patch = vision.hidden_size, vision.num_positions, vision.patch_size

    def row(name: str, shape: Shape, *operations: Operation) -> ReleasedTensor:
        return ReleasedTensor("vision_model.embeddings." + name, shape, ("vision." + name,), operations)

    return [
        row("class_embedding", (1, 1, width), Reshape((1, 1, width), (width,))),
        row("position_embedding", (1, positions, width), Reshape((1, positions, width), (positions, width))),
        row("patch_embedding.weight", (width, vision.num_channels, patch, patch)),
        row("patch_embedding.bias", (width,)),
    ]


def _vision_layer(vision: VisionConfig) -> list[ReleasedTensor]:
    width, inner = vision.hidden_size, vision.intermediate_size
    names_and_shapes: list[tuple[str, str, Shape]] = [
        ("attn.proj.bias", "attention.out_proj.bias", (width,)),
        ("ls1", "layer_scale1", (width,)),
        ("norm2.weight", "norm2.weight", (width,)),
        ("mlp.fc1.weight", "mlp.fc1.weight", (inner, width)),
        ("mlp.fc1.bias", "mlp.fc1.bias", (inner,)),
        ("mlp.fc2.weight", "mlp.fc2.weight", (width, inner)),
        ("mlp.fc2.bias", "mlp.fc2.bias", (width,)),
        ("ls2", "layer_scale2", (width,)),
    ]
    return [
        ReleasedTensor(_VISION_LAYER + "norm1.weight", (width,), ("vision.layers.{n}.norm1.weight",)),
        *_vision_attention(vision),
        *(
            ReleasedTensor(_VISION_LAYER + disk, shape, ("vision.layers.{n}." + model,))
            for disk, model, shape in names_and_shapes
        ),
    ]


def _vision_attention(vision: VisionConfig) -> list[ReleasedTensor]:
    """The padded tensors. In every block of heads the real ones come first."""
    width, padded = vision.hidden_size, vision.padded_hidden_size
    rows = Slice(0, 0, width, padded)
    columns = Slice(1, 0, width, padded)
    # Rows of the fused weight: q of all heads, then k, then v.
    blocks = Split(0, (padded,) * 3)

    def row(disk: str, shape: Shape, targets: Sequence[str], *operations: Operation) -> ReleasedTensor:
        names = tuple(f"vision.layers.{{n}}.attention.{target}.weight" for target in targets)
        return ReleasedTensor(_VISION_LAYER + disk, shape, names, operations, torch.float32)

    return [
        row("attn.qkv.weight", (3 * padded, width), ["q_proj", "k_proj", "v_proj"], blocks, rows),
        row("attn.q_norm.weight", (padded,), ["q_norm"], rows),
        row("attn.k_norm.weight", (padded,), ["k_norm"], rows),
        row("attn.proj.weight", (width, padded), ["out_proj"], columns),
    ]


def _projector(config: NvlmConfig) -> list[ReleasedTensor]:
    source, width = config.projector_input_size, config.language.hidden_size
    hidden = width if config.projector_layers == 1 else config.projector_hidden_size
    rows = [
        ReleasedTensor("mlp1.0.weight", (source,), ("projector.norm.weight",)),
        ReleasedTensor("mlp1.0.bias", (source,), ("projector.norm.bias",)),
        ReleasedTensor("mlp1.1.weight", (hidden, source), ("projector.fc1.weight",)),
    ]
    if config.projector_layers == 2:
        rows.append(ReleasedTensor("mlp1.3.weight", (width, hidden), ("projector.fc2.weight",)))
    return rows


def _language_ends(language: LanguageConfig) -> list[ReleasedTensor]:
    table = (language.vocab_size, language.hidden_size)
    disk, model = "language_model.", "language."
    tensors = [
        ReleasedTensor(disk + "model.embed_tokens.weight", table, (model + "embed_tokens.weight",)),
        ReleasedTensor(disk + "model.norm.weight", (language.hidden_size,), (model + "norm.weight",)),
    ]
    if not language.tie_word_embeddings:
        tensors.append(ReleasedTensor(disk + "lm_head.weight", table, (model + "lm_head.weight",)))
    return tensors


def _language_layer(language: LanguageConfig) -> list[ReleasedTensor]:
    width, inner = language.hidden_size, language.intermediate_size
    qkv = (("q_proj", language.q_size), ("k_proj", language.kv_size), ("v_proj", language.kv_size))
    bfloat16, fp32 = torch.bfloat16, torch.float32

    def row(disk: str, shape: Shape, target: str, dtype: torch.dtype = bfloat16) -> ReleasedTensor:
        names = ("language.layers.{n}." + target,)
        return ReleasedTensor(_LANGUAGE_LAYER + disk, shape, names, (), dtype)

    rows = [row("input_layernorm.weight", (width,), "input_norm.weight")]
    for part, size in qkv:
        rows.append(row(f"self_attn.{part}.weight", (size, width), f"attention.{part}.weight", fp32))
        if language.qkv_bias:
            rows.append(row(f"self_attn.{part}.bias", (size,), f"attention.{part}.bias", fp32))
    return [
        *rows,
        row("self_attn.o_proj.weight", (width, language.q_size), "attention.o_proj.weight"),
        row("post_attention_layernorm.weight", (width,), "post_attention_norm.weight"),
        row("mlp.gate_proj.weight", (inner, width), "mlp.gate_proj.weight"),
        row("mlp.up_proj.weight", (inner, width), "mlp.up_proj.weight"),
        row("mlp.down_proj.weight", (width, inner), "mlp.down_proj.weight"),
    ]


def _layer_rows(config: NvlmConfig, layer: int) -> list[ReleasedTensor]:
    rows = _language_layer(config.language)
    if config.cross_attention is not None and layer in config.cross_attention.layers:
        rows += _cross_attention(config.cross_attention, config.language)
    return rows


def _cross_attention(cross: CrossAttentionConfig, language: LanguageConfig) -> list[ReleasedTensor]:
    """Names are ours, in the style of the rest: no NVLM-X or NVLM-H was released."""
    width, inner = language.hidden_size, language.intermediate_size

    def row(disk: str, shape: Shape, target: str) -> ReleasedTensor:
        return ReleasedTensor(_LANGUAGE_LAYER + disk, shape, ("language.layers.{n}.cross." + target,))

    rows = [row("cross_attn_layernorm.weight", (width,), "norm.weight")]
    if cross.kv_norm:
        rows.append(row("cross_attn_kv_layernorm.weight", (width,), "kv_norm.weight"))
    for part, size in (("q_proj", cross.q_size), ("k_proj", cross.kv_size), ("v_proj", cross.kv_size)):
        rows.append(row(f"cross_attn.{part}.weight", (size, width), f"attention.{part}.weight"))
        if cross.qkv_bias:
            rows.append(row(f"cross_attn.{part}.bias", (size,), f"attention.{part}.bias"))
    rows.append(row("cross_attn.o_proj.weight", (width, cross.q_size), "attention.o_proj.weight"))
    rows.append(row("cross_attn_gate", (1,), "gate"))
    if cross.gated_mlp:
        rows.append(row("cross_attn_mlp_layernorm.weight", (width,), "mlp_norm.weight"))
        for part, shape in (
            ("gate_proj", (inner, width)),
            ("up_proj", (inner, width)),
            ("down_proj", (width, inner)),
        ):
            rows.append(row(f"cross_attn_mlp.{part}.weight", shape, f"mlp.{part}.weight"))
        rows.append(row("cross_attn_mlp_gate", (1,), "mlp_gate"))
    return rows
