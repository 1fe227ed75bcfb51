"""Find the blocks of a vision tower for which FP16 is too little, before an engine is made.

The reference tower runs over tiles of the calibration set, one layer in memory at a time. A block whose
values come near the largest FP16 number, or whose result loses too much in FP16, computes in BF16 or, if
that loses too much, in FP32. So does the stream that all layers add to. The tower is then computed with
these choices, every result rounded, and its visual tokens must point where PyTorch's do.

Shapes: T tiles, I pixels per side, P positions, C hidden size, N visual tokens per tile, D decoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nvlm_deploy.backends.tensorrt.rounding import compute
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.errors import VerificationError
from nvlm_deploy.export.dialect import PROJECTOR, STREAM, FloatType
from nvlm_deploy.models.vision import VisionLayer
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.quantization.streamed_model import StreamedModel

FP16_MAX = 65504.0
# The calibration tiles are few, and other images reach higher.
HEADROOM = 2.0
# Largest relative error (norm) that a block's own arithmetic may add. Rounding alone adds 0.001 in FP16 and
# 0.005 in BF16.
BLOCK_ERROR = 0.01
_CANDIDATES: tuple[FloatType, ...] = ("fp16", "bf16", "fp32")

Block = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What one block was found to need. peak: its largest magnitude. errors: relative, by type tried."""

    name: str
    peak: float
    errors: dict[str, float]
    floats: FloatType

    @property
    def reason(self) -> str:
        """Why it does not compute in FP16; empty if it does."""
        if self.floats == "fp16":
            return ""
        if self.peak * HEADROOM > FP16_MAX:
            return f"values reach {self.peak:.3g}, and FP16 ends at {FP16_MAX:.0f}"
        return f"FP16 loses {self.errors['fp16']:.3g} of the result"


@dataclass(frozen=True, slots=True)
class GuardReport:
    """The choice for every block, and the cosine of the visual tokens that are computed with them."""

    tiles: int
    blocks: tuple[BlockReport, ...]
    cosine: float

    @property
    def exceptions(self) -> dict[str, FloatType]:
        """Blocks that do not compute in FP16."""
        return {block.name: block.floats for block in self.blocks if block.floats != "fp16"}

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        largest = max(self.blocks, key=lambda block: block.peak)
        return {
            "tiles": self.tiles,
            "cosine": round(self.cosine, 7),
            "peak": {"block": largest.name, "value": round(largest.peak, 3)},
            "exceptions": {
                b.name: {"floats": b.floats, "reason": b.reason} for b in self.blocks if b.floats != "fp16"
            },
        }


def guard_tower(weights: ModelWeights, tiles: NDArray[np.uint8], least_cosine: float) -> GuardReport:
    """Choose a type for every block of the tower and the projector.

    Args:
        weights: of a released or a quantized checkpoint; quantized matrices count as what they stand for.
        tiles: RGB, uint8 [T, I, I, 3]. Each is computed five times, in FP32.
        least_cosine: that visual tokens must reach.

    Raises:
        VerificationError: the visual tokens miss it.
    """
    tower = _Tower(weights)
    pixels = torch.from_numpy(normalize_tiles(tiles))
    blocks, expected_TND = tower.examine(pixels)
    report = GuardReport(len(tiles), blocks, tower.cosine(pixels, blocks, expected_TND))
    if not report.cosine >= least_cosine:
        raise VerificationError(
            f"visual tokens in 16 bits have a cosine of {report.cosine:.6f} to PyTorch's, and "
            f"{least_cosine} is asked for",
            hint="compute in BF16 with --set target.compute=bf16, or set target.tolerances.vision_cosine",
        )
    return report


class _Tower:
    """The tower as a row of blocks, of which the weights of one layer are in memory."""

    def __init__(self, weights: ModelWeights) -> None:
        self._streamed = StreamedModel(weights, torch.device("cpu"))
        self._model = self._streamed.model
        self._layers = weights.reader.config.vision.num_layers

    def examine(self, pixels: Tensor) -> tuple[tuple[BlockReport, ...], Tensor]:
        """What every block needs, the stream first, and the visual tokens in FP32."""
        reports, stream_peak = [], 0.0
        x_TPC = torch.empty(0)
        for name, modules, block, scale in self._blocks():
            given = pixels if name == STREAM else x_TPC
            exact = compute(block, modules, given, "fp32")
            if name != STREAM:
                reports.append(_choose(name, block, modules, given, exact.y, exact.peak))
            if scale is None:
                x_TPC = exact.y
            else:
                x_TPC, scaled = x_TPC + scale * exact.y, float((scale * exact.y).abs().max())
                stream_peak = max(stream_peak, scaled)
            if name != PROJECTOR:
                stream_peak = max(stream_peak, float(x_TPC.abs().max()))
        floats: FloatType = "fp32" if stream_peak * HEADROOM > FP16_MAX else "fp16"
        return (BlockReport(STREAM, stream_peak, {}, floats), *reports), x_TPC

    def cosine(self, pixels: Tensor, blocks: Sequence[BlockReport], expected_TND: Tensor) -> float:
        """Cosine of the visual tokens computed with the choices of `blocks` to the expected ones."""
        chosen = {block.name: block.floats for block in blocks}
        x_TPC = torch.empty(0)
        for name, modules, block, scale in self._blocks():
            given = pixels if name == STREAM else x_TPC
            y = compute(block, modules, given, chosen[name]).y
            if scale is None:
                x_TPC = y
            else:
                add = _scaled_sum(scale, y)
                x_TPC = compute(add, (), x_TPC, chosen[STREAM]).y
        a, b = x_TPC.double().flatten(), expected_TND.double().flatten()
        return float(a @ b / (a.norm() * b.norm()))

    def _blocks(self) -> Iterator[tuple[str, tuple[nn.Module, ...], Block, Tensor | None]]:
        """Name, modules, computation and layer scale of every block, with its weights in memory.

        The first makes the stream; the last makes visual tokens of it.
        """
        vision, projector = self._model.vision, self._model.projector
        names = self._streamed.parameters_of("vision")
        with self._streamed.loaded(name for name in names if not name.startswith("vision.layers.")):
            # A product is a result: tiles are rounded before the convolution.
            yield STREAM, (vision.patch_embedding,), lambda pixels: vision.embed(1 * pixels), None
        for number in range(self._layers):
            name = f"vision.layers.{number}"
            layer = vision.layers[number]
            assert isinstance(layer, VisionLayer)
            with self._streamed.loaded(self._streamed.parameters_of(name)):
                attention, mlp = _branch(layer.norm1, layer.attention), _branch(layer.norm2, layer.mlp)
                yield f"{name}.attention", (layer.norm1, layer.attention), attention, layer.layer_scale1
                yield f"{name}.mlp", (layer.norm2, layer.mlp), mlp, layer.layer_scale2
        with self._streamed.loaded(self._streamed.parameters_of("projector")):
            yield PROJECTOR, (projector,), lambda x_TPC: projector(x_TPC[:, 1:]), None


def _branch(norm: nn.Module, rest: nn.Module) -> Block:
    return lambda x_TPC: rest(norm(x_TPC))


def _scaled_sum(scale_C: Tensor, y_TPC: Tensor) -> Block:
    return lambda x_TPC: x_TPC + scale_C * y_TPC


def _choose(
    name: str, block: Block, modules: tuple[nn.Module, ...], x: Tensor, exact: Tensor, peak: float
) -> BlockReport:
    """Take the first type that holds the values and loses little of the result."""
    errors: dict[str, float] = {}
    chosen: FloatType = "fp32"
    for floats in _CANDIDATES:
        if floats == "fp16" and peak * HEADROOM > FP16_MAX:
            continue
        y = compute(block, modules, x, floats).y if floats != "fp32" else exact
        errors[floats] = float((y - exact).norm() / exact.norm())
        if errors[floats] <= BLOCK_ERROR:
            chosen = floats
            break
    return BlockReport(name, peak, errors, chosen)
