"""How the decoder of NVLM-X and NVLM-H attends to tiles beside its own sequence.

The paper fixes that there are gated cross-attention layers and how many (4.3, 4.4: ten, one for every six
or eight decoder layers), and neither model was released. Everything else is a field here, with a default
and its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from nvlm_deploy.config.fields import ConfigFields

Placement = Literal["after_self_attention", "before_layer"]


@dataclass(frozen=True, slots=True)
class CrossAttentionConfig:
    """The section `cross_attention_config` of `config.json`.

    layers: decoder layers that have one, ascending. By default the last of every group: a query there
        has read the text before it, while that of the first layer is a bare embedding.
    num_heads, num_kv_heads, head_dim: by default the decoder's own, whose kernels then serve both.
    qkv_bias: by default none, as in Flamingo, which the paper cites for the gate.
    placement: `after_self_attention`, before the MLP of the same layer, as Figure 3 draws it, or
        `before_layer`, the whole block in front of the layer, as in Flamingo.
    kv_norm: an RMSNorm on what keys and values are made of. By default there is one: in NVLM-H token
        embeddings of tags stand beside projected tiles there, at very different scales.
    bind_tags: in NVLM-H the mean of a tag's embeddings is also added to its tile's visual tokens, after the
        norm. By default it is: attention does not see the order of its keys, so a tag beside a tile, as
        the paper puts it, does not say which of them it belongs to.
    gated_mlp: Flamingo's second half, an MLP with a gate of its own. By default none: Figure 3 has none.

    Queries are always normalized (RMSNorm, as before the decoder's own attention) and never rotated:
    tiles have no place in the text. Gates are tanh of one number, zero in a new model, so that a new
    NVLM-X equals the language model that it was made of.
    """

    layers: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    placement: Placement = "after_self_attention"
    kv_norm: bool = True
    bind_tags: bool = True
    gated_mlp: bool = False

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


def every(interval: int, num_layers: int) -> tuple[int, ...]:
    """The last layer of every group of `interval`: 7, 15, ..., 79 for 8 of 80."""
    return tuple(range(interval - 1, num_layers, interval))


class DecoderSizes(Protocol):
    """What the defaults are taken from: the decoder's own sizes."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


def read_cross_attention(fields: ConfigFields, decoder: DecoderSizes) -> CrossAttentionConfig:
    """Read the section; only `layers` has to be there.

    Raises:
        NvlmError: names the field and what is supported.
    """
    fields.expect_default("gate", "tanh")
    fields.expect_default("rope", False)
    heads = fields.integer("num_attention_heads", default=decoder.num_heads)
    kv_heads = fields.integer("num_key_value_heads", default=decoder.num_kv_heads)
    if heads % kv_heads:
        fields.fail("num_key_value_heads", kv_heads, f"a divisor of {heads}")
    return CrossAttentionConfig(
        layers=_layers(fields, decoder.num_layers),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=fields.integer("head_dim", default=decoder.head_dim),
        qkv_bias=fields.flag("attention_bias", default=False),
        placement=fields.choice("placement", get_args(Placement), default="after_self_attention"),
        kv_norm=fields.choice("kv_norm", ("rms_norm", "none"), default="rms_norm") == "rms_norm",
        bind_tags=fields.flag("bind_tags", default=True),
        gated_mlp=fields.flag("gated_mlp", default=False),
    )


def _layers(fields: ConfigFields, num_layers: int) -> tuple[int, ...]:
    layers = fields.get("layers")
    numbers = isinstance(layers, list) and all(type(layer) is int for layer in layers)
    if (
        not numbers
        or not layers
        or layers != sorted(set(layers))
        or not 0 <= layers[0] <= layers[-1] < num_layers
    ):
        fields.fail("layers", layers, f"ascending numbers of decoder layers, 0 to {num_layers - 1}")
    return tuple(layers)
