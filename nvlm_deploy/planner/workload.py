"""What an engine is planned for: tiles, context, batch; and the tokens and operations that come of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvlm_deploy.config.model import LanguageConfig, NvlmConfig
from nvlm_deploy.quantization.plan import QuantizationPlan, TensorPlan

# `<tile_k>` is five tokens. Around all tiles stand `<Image>` and `</Image>` with a line break, four tokens
# after "><" has merged. Chat template and a question of 16 tokens have 32.
_TAG_TOKENS = 5
_IMAGE_TOKENS = 4
_QUESTION_TOKENS = 32


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
    """Tokens of a prompt with one image: 1,863 for seven tiles of NVLM-D-72B, with a question of 16."""
    per_tile = config.visual_tokens_per_tile + _TAG_TOKENS
    return encoded_tiles * per_tile + _IMAGE_TOKENS + _QUESTION_TOKENS


def tile_counts(config: NvlmConfig, tiles: int) -> tuple[int, ...]:
    """What the tower can see of an image of at most `tiles`: one tile, or a thumbnail beside two and more."""
    if not config.use_thumbnail:
        return tuple(range(1, tiles + 1))
    return (1, *range(3, tiles + 2))


def tower_operations(config: NvlmConfig, plan: QuantizationPlan) -> dict[str, float]:
    """Operations (2 per multiply-add) of tower and projector for one tile, by the precision they run in."""
    vision = config.vision
    total: dict[str, float] = {}
    for tensor in plan.tensors.values():
        if tensor.matrix and tensor.part in ("vision", "projector"):
            tokens = vision.num_positions if tensor.part == "vision" else config.visual_tokens_per_tile
            key = arithmetic(tensor)
            total[key] = total.get(key, 0.0) + 2.0 * math.prod(tensor.shape) * tokens
    scores = 4.0 * vision.num_positions**2 * vision.hidden_size * vision.num_layers
    patches = 2.0 * vision.hidden_size * vision.num_channels * vision.patch_size**2 * vision.num_positions
    total["fp16"] = total.get("fp16", 0.0) + scores + patches
    return total


def prefill_operations(config: NvlmConfig, plan: QuantizationPlan, tokens: int) -> dict[str, float]:
    """Operations of the decoder for a prompt, by precision; logits of its last token only."""
    language = config.language
    total: dict[str, float] = {}
    for tensor in plan.tensors.values():
        if not tensor.matrix or tensor.part not in ("language", "lm_head"):
            continue
        rows = tokens if tensor.part == "language" else 1
        key = arithmetic(tensor)
        total[key] = total.get(key, 0.0) + 2.0 * math.prod(tensor.shape) * rows
    # Causal: every token attends to half of the prompt on average.
    total["fp16"] = total.get("fp16", 0.0) + 2.0 * tokens**2 * language.q_size * language.num_layers
    return total


def arithmetic(tensor: TensorPlan) -> str:
    """The precision whose rate a matrix is multiplied at; weight-only formats are widened to 16 bits."""
    activations = tensor.storage.activations
    named = {"int8-static": "int8", "int8": "int8-dynamic", "fp8": "fp8", "nvfp4": "nvfp4"}
    return named.get(activations, "fp16")


def kv_bytes_per_token(config: LanguageConfig, element_bytes: int, kv_heads: int, layers: int) -> int:
    """Keys and values of one token in `layers`: 327,680 bytes for NVLM-D-72B in 16 bits."""
    return 2 * layers * kv_heads * config.head_dim * element_bytes
