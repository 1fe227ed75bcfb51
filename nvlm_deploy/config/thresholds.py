"""What an engine must keep of its checkpoint: the section `verify` of a recipe.

A recipe states only what differs from the defaults, which follow from the bits that its weights have.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class VerifyThresholds(BaseModel):
    """Limits of `nvlm-build verify`; docs/verification.md says how each figure is measured.

    Cosines are means over positions, of the worst layer. Divergences are in nats and means over positions.
    Agreements and lost answers are shares, 0 to 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tower_weight_error: float = Field(gt=0, description="most relative error of a matrix of the tower")
    decoder_weight_error: float = Field(gt=0, description="most relative error of a matrix of the decoder")
    tower_cosine: float = Field(ge=-1, le=1, description="least cosine of the tower's residual stream")
    tower_branch_cosine: float = Field(ge=-1, le=1, description="least cosine of what one branch adds")
    projector_cosine: float = Field(ge=-1, le=1, description="least cosine of the visual tokens")
    decoder_cosine: float = Field(ge=-1, le=1, description="least cosine of the decoder's residual stream")
    decoder_branch_cosine: float = Field(ge=-1, le=1, description="least cosine of what one branch adds")
    image_kl: float = Field(gt=0, description="most divergence of answers about images")
    image_top1: float = Field(ge=0, le=1, description="least agreement of answers about images")
    text_kl: float = Field(gt=0, description="most divergence of answers without an image")
    text_top1: float = Field(ge=0, le=1, description="least agreement of answers without an image")
    lost_answers: float = Field(ge=0, le=1, description="most right answers lost, chance aside")
    tag_swap_cosine: float = Field(ge=-1, le=1, description="least cosine of the change that a swap makes")
    tag_swap_size: float = Field(gt=0, le=1, description="least size of that change, or of its inverse")
    kv_cache_kl: float = Field(gt=0, description="most divergence that an FP8 KV cache adds")


def default_thresholds(vision_bits: int, decoder_bits: int) -> dict[str, Any]:
    """Return limits for a tower (and projector) and a decoder of so many bits per weight."""
    tower, decoder = _TOWER[_coarse(vision_bits)], _DECODER[_coarse(decoder_bits)]
    return {**tower, **decoder, **_MODEL[_coarse(min(vision_bits, decoder_bits))]}


def _coarse(bits: int) -> int:
    return 16 if bits > 8 else 8 if bits > 4 else 4


# Healthy engines of the trained example and of random weights lie well inside (docs/verification.md has the
# figures), and the faults that the tests plant lie well outside.
_TOWER = {
    16: {
        "tower_weight_error": 0.005,
        "tower_cosine": 0.9999,
        "tower_branch_cosine": 0.999,
        "projector_cosine": 0.9999,
    },
    8: {
        "tower_weight_error": 0.05,
        "tower_cosine": 0.999,
        "tower_branch_cosine": 0.99,
        "projector_cosine": 0.999,
    },
    4: {
        "tower_weight_error": 0.18,
        "tower_cosine": 0.98,
        "tower_branch_cosine": 0.95,
        "projector_cosine": 0.98,
    },
}
_DECODER = {
    16: {"decoder_weight_error": 0.005, "decoder_cosine": 0.9999, "decoder_branch_cosine": 0.999},
    8: {"decoder_weight_error": 0.05, "decoder_cosine": 0.998, "decoder_branch_cosine": 0.99},
    4: {"decoder_weight_error": 0.18, "decoder_cosine": 0.98, "decoder_branch_cosine": 0.93},
}
_MODEL = {
    16: {
        "image_kl": 0.001,
        "image_top1": 0.99,
        "text_kl": 0.001,
        "text_top1": 0.98,
        "lost_answers": 0.005,
        "tag_swap_cosine": 0.99,
        "tag_swap_size": 0.9,
        "kv_cache_kl": 0.01,
    },
    8: {
        "image_kl": 0.01,
        "image_top1": 0.97,
        "text_kl": 0.02,
        "text_top1": 0.9,
        "lost_answers": 0.02,
        "tag_swap_cosine": 0.7,
        "tag_swap_size": 0.6,
        "kv_cache_kl": 0.01,
    },
    4: {
        "image_kl": 0.05,
        "image_top1": 0.95,
        "text_kl": 0.1,
        "text_top1": 0.8,
        "lost_answers": 0.04,
        "tag_swap_cosine": 0.4,
        "tag_swap_size": 0.5,
        "kv_cache_kl": 0.02,
    },
}
