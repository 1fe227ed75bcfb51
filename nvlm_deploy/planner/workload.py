"""What an engine is planned for: tiles, context, batch; and the tokens and operations that come of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvlm_deploy.config.model import LanguageConfig, NvlmConfig
from nvlm_deploy.quantization.plan import QuantizationPlan, TensorPlan

# `<tile_k>` is five tokens. Around all tiles stand `<Image>` and `</Image>` with a line break, four tokens
# after "><" has merged. The chat template has 15.
_TAG_TOKENS = 5
_IMAGE_TOKENS = 4
_TEMPLATE_TOKENS = 15
_QUESTION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Workload:
    """The largest request: `tiles` of an image, without its thumbnail; `context` of prompt and answer.

    `batch` requests at a time. Where there is more than one tile, a thumbnail is one more.
    """

    tiles: int
    context: int
    batch: int

    @property
    def encoded_tiles(self) -> int:
        """Tiles that the tower sees for one request."""
        return self.tiles + 1 if self.tiles > 1 else 1


def prompt_tokens(config: NvlmConfig, encoded_tiles: int) -> int:
    """Tokens of a prompt with one image and a question of 16: 1,862 for seven tiles of NVLM-D-72B."""
    return shortest_context(config, encoded_tiles) - 1 + _QUESTION_TOKENS


def shortest_context(config: NvlmConfig, encoded_tiles: int) -> int:
    """Tokens of a prompt with one image and no question, and one of an answer."""
    per_tile = config.visual_tokens_per_tile + _TAG_TOKENS
    return encoded_tiles * per_tile + _IMAGE_TOKENS + _TEMPLATE_TOKENS + 1


def tile_counts(config: NvlmConfig, tiles: int) -> tuple[int, ...]:
    """What the tower can see of an image of at most `tiles`: one tile, or a thumbnail beside two and more."""
    if not config.use_thumbnail:
        return tuple(range(1, tiles + 1))
    return (1, *range(3, tiles + 2))


def tower_operations(config: NvlmConfig, plan: QuantizationPlan) -> dict[str, float]:
    """Operations (2 per multiply-add) of tower and projector for one tile, by the precision they run in."""
    vision = config.vision
    total = {"fp16": 4.0 * vision.num_positions**2 * vision.hidden_size * vision.num_layers}
    total["fp16"] += (
        2.0 * vision.hidden_size * vision.num_channels * vision.patch_size**2 * vision.num_positions
    )
    for part, tokens in (("vision", vision.num_positions), ("projector", config.visual_tokens_per_tile)):
        for precision, operations in _per_token(plan, part).items():
            total[precision] = total.get(precision, 0.0) + tokens * operations
    return total


@dataclass(frozen=True, slots=True)
class DecoderOperations:
    """Operations of the decoder by precision: of one token in its layers, and of one row of logits.

    attention: of one token for one that it attends to.
    """

    layers: dict[str, float]
    logits: dict[str, float]
    attention: float

    def prefill(self, tokens: int) -> dict[str, float]:
        """Operations for a prompt, with the logits of its last token."""
        total = {precision: tokens * operations for precision, operations in self.layers.items()}
        for precision, operations in self.logits.items():
            total[precision] = total.get(precision, 0.0) + operations
        # Causal: a token attends to half of the prompt on average.
        total["fp16"] = total.get("fp16", 0.0) + self.attention * tokens**2 / 2
        return total


def decoder_operations(config: LanguageConfig, plan: QuantizationPlan) -> DecoderOperations:
    """Count the decoder's operations once."""
    attention = 4.0 * config.q_size * config.num_layers
    return DecoderOperations(_per_token(plan, "language"), _per_token(plan, "lm_head"), attention)


def _per_token(plan: QuantizationPlan, part: str) -> dict[str, float]:
    total: dict[str, float] = {}
    for tensor in plan.tensors.values():
        if tensor.matrix and tensor.part == part:
            precision = arithmetic(tensor)
            total[precision] = total.get(precision, 0.0) + 2.0 * math.prod(tensor.shape)
    return total


def arithmetic(tensor: TensorPlan) -> str:
    """The precision whose rate a matrix is multiplied at; weight-only formats are widened to 16 bits."""
    activations = tensor.storage.activations
    named = {"int8-static": "int8", "int8": "int8-dynamic", "fp8": "fp8", "nvfp4": "nvfp4"}
    return named.get(activations, "fp16")


def kv_bytes_per_token(config: LanguageConfig, element_bytes: int, kv_heads: int, layers: int) -> int:
    """Keys and values of one token in `layers`: 327,680 bytes for NVLM-D-72B in 16 bits."""
    return 2 * layers * kv_heads * config.head_dim * element_bytes
