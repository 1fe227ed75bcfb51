"""Which linears multiply the same input, layer by layer: they share a scale, and engines fuse them."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm_deploy.config.model import NvlmConfig


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Linears with one common input, by the names of `nvlm_deploy.models`, without `.weight`.

    norm: the norm whose output the input is; a scale of the input's channels is folded into it. None: the
    scale is kept beside the weights, and engines multiply with it.
    """

    linears: tuple[str, ...]
    norm: str | None = None

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


def projector_groups() -> tuple[LinearGroup, ...]:
    """Linears of the projector."""
    return (LinearGroup(("projector.fc1",), "projector.norm"), LinearGroup(("projector.fc2",)))


def decoder_layer_groups(layer: int) -> tuple[LinearGroup, ...]:
    """Linears of one layer of the decoder."""
    name = f"language.layers.{layer}"
    return (
        LinearGroup(tuple(f"{name}.attention.{k}_proj" for k in "qkv"), f"{name}.input_norm"),
        LinearGroup((f"{name}.attention.o_proj",)),
        LinearGroup((f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"), f"{name}.post_attention_norm"),
        LinearGroup((f"{name}.mlp.down_proj",)),
    )


def head_groups() -> tuple[LinearGroup, ...]:
    """`lm_head`, whose input is the last norm's output."""
    return (LinearGroup(("language.lm_head",), "language.norm"),)


def all_groups(config: NvlmConfig) -> tuple[LinearGroup, ...]:
    """All groups of an NVLM-D, in the order of computation."""
    return (
        *(g for layer in range(config.vision.num_layers) for g in vision_layer_groups(layer)),
        *projector_groups(),
        *(g for layer in range(config.language.num_layers) for g in decoder_layer_groups(layer)),
        *head_groups(),
    )
