"""Which linears multiply the same input, layer by layer: they share a scale, and engines fuse them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.config.model import NvlmConfig

GroupRows = Literal["all", "seeing", "entries"]


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Linears with one common input, by the names of `nvlm_deploy.models`, without `.weight`.

    norm: the norm whose output the input is; a scale of the input's channels is folded into it. None: the
    scale is kept beside the weights, and engines multiply with it. rows: what the input is about: all
    positions of the part; only those that see a tile, because cross-attention adds nothing to others; or the
    entries of tiles that cross-attention attends to.
    """

    linears: tuple[str, ...]
    norm: str | None = None
    rows: GroupRows = "all"

    @property
    def weights(self) -> tuple[str, ...]:
        """Parameter names of the weights."""
        return tuple(f"{name}.weight" for name in self.linears)


def vision_layer_groups(layer: int) -> tuple[LinearGroup, ...]:
    """Linears of one layer of InternViT."""
    name = f"vision.layers.{layer}"
    return (
        LinearGroup(tuple(f"{name}.attention.{k}_proj" for k in "qkv"), f"{name}.norm1"),
        LinearGroup((f"{name}.attention.out_proj",)),
        LinearGroup((f"{name}.mlp.fc1",), f"{name}.norm2"),
        LinearGroup((f"{name}.mlp.fc2",)),
    )


def projector_groups(layers: int = 2) -> tuple[LinearGroup, ...]:
    """Linears of the projector, which has one or two layers."""
    both = (LinearGroup(("projector.fc1",), "projector.norm"), LinearGroup(("projector.fc2",)))
    return both[:layers]


def decoder_layer_groups(layer: int, cross: CrossAttentionConfig | None = None) -> tuple[LinearGroup, ...]:
    """Linears of one layer of the decoder, in the order of computation.

    Args:
        cross: the model's cross-attention, if it has any; this layer may be without.
    """
    name = f"language.layers.{layer}"
    attention = (
        LinearGroup(tuple(f"{name}.attention.{k}_proj" for k in "qkv"), f"{name}.input_norm"),
        LinearGroup((f"{name}.attention.o_proj",)),
    )
    mlp = (
        LinearGroup((f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"), f"{name}.post_attention_norm"),
        LinearGroup((f"{name}.mlp.down_proj",)),
    )
    if cross is None or layer not in cross.layers:
        return (*attention, *mlp)
    added = _cross_attention_groups(f"{name}.cross", cross)
    first = cross.placement == "before_layer"
    return (*added, *attention, *mlp) if first else (*attention, *added, *mlp)


def _cross_attention_groups(name: str, cross: CrossAttentionConfig) -> tuple[LinearGroup, ...]:
    """Keys and values share what tiles are made into, and queries see the text.

    `kv_norm` is on tiles and, apart, on the tags that are bound to them; keys are made of the sum. A scale in
    its weight is in both summands, so it can be folded there.
    """
    kv_norm = f"{name}.kv_norm" if cross.kv_norm else None
    groups = [
        LinearGroup((f"{name}.attention.k_proj", f"{name}.attention.v_proj"), kv_norm, "entries"),
        LinearGroup((f"{name}.attention.q_proj",), f"{name}.norm", "seeing"),
        LinearGroup((f"{name}.attention.o_proj",), None, "seeing"),
    ]
    if cross.gated_mlp:
        gate_up = (f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj")
        groups.append(LinearGroup(gate_up, f"{name}.mlp_norm", "seeing"))
        groups.append(LinearGroup((f"{name}.mlp.down_proj",), None, "seeing"))
    return tuple(groups)


def head_groups() -> tuple[LinearGroup, ...]:
    """`lm_head`, whose input is the last norm's output."""
    return (LinearGroup(("language.lm_head",), "language.norm"),)


def all_groups(config: NvlmConfig) -> tuple[LinearGroup, ...]:
    """All groups of a model, in the order of computation."""
    layers, cross = config.language.num_layers, config.cross_attention
    return (
        *(g for layer in range(config.vision.num_layers) for g in vision_layer_groups(layer)),
        *projector_groups(config.projector_layers),
        *(g for layer in range(layers) for g in decoder_layer_groups(layer, cross)),
        *head_groups(),
    )
