"""Optimization profiles: the least, the usual and the largest shape of every input.

Shapes: B rows of the batch, S new tokens, P logit positions, V visual tokens, C cache capacity, T tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvlm_deploy.config.model import NvlmConfig

if TYPE_CHECKING:
    import onnx_ir as ir

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]

# Positions whose logits one step gives; logits of many positions are computed in more steps.
MAX_POSITIONS = 16
# Tokens of one step of prefill. Longer prompts are computed in pieces, which bounds the activations.
PREFILL_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Ranges:
    """Least, usual and largest size of the free dimensions, by their names in the graph."""

    sizes: dict[str, tuple[int, int, int]]

    def profile(self, model: ir.Model) -> Profile:
        """Return the shapes of a graph's inputs; inputs without free dimensions are left out."""
        shapes: Profile = {}
        for value in model.graph.inputs:
            dims = [d if isinstance(d, int) else str(d) for d in value.shape or ()]
            if any(isinstance(d, str) for d in dims):
                least, usual, most = (
                    tuple(d if isinstance(d, int) else self.sizes[d][i] for d in dims) for i in range(3)
                )
                shapes[str(value.name)] = (least, usual, most)
        return shapes


def vision_ranges(config: NvlmConfig, batch: int) -> tuple[Ranges, ...]:
    """One profile: a single tile, an image with all tiles and its thumbnail, and a batch of those.

    Pages and photographs take all tiles of the grid, so that is the usual number.
    """
    whole = config.max_tiles + 1
    return (Ranges({"tiles": (1, whole, whole * batch)}),)


def decoder_ranges(
    config: NvlmConfig, context: int, batch: int, *, decode_apart: bool = True
) -> tuple[Ranges, ...]:
    """Two profiles: prefill in pieces of up to `PREFILL_TOKENS`, and decode of one token a row.

    Not `decode_apart`: the first serves for both. A profile has kernels of its own, and TensorRT-RTX keeps
    16-bit and 8-bit weights once for each.
    """
    piece = min(PREFILL_TOKENS, context)
    visual = min(piece, (config.max_tiles + 1) * config.visual_tokens_per_tile)
    rows, room = (1, 1, batch), (piece, max(piece, context // 2), context)
    shared = {"batch": rows, "capacity": room}
    positions = (1, 1, min(MAX_POSITIONS, piece))
    prefill = {"sequence": (1, piece, piece), "visual": (1, visual, piece * batch), "positions": positions}
    decode = {"sequence": (1, 1, 1), "visual": (1, 1, 1), "positions": (1, 1, 1)}
    ranges = Ranges({**shared, **prefill}), Ranges({**shared, **decode})
    return ranges if decode_apart else ranges[:1]
