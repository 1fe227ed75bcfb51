"""Recipes side by side: what each one makes of the released model's weights, and where it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nvlm_deploy.config.manifest import PartSize
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.parameters import parameter_shapes
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.target import capability
from nvlm_deploy.quantization.plan import resolve
from nvlm_deploy.synthetic.shapes import SHAPES, released_style_config

REFERENCE_MODEL = "nvlm-d-72b"


@dataclass(frozen=True, slots=True)
class RecipeFigures:
    """One recipe on the shapes of one model.

    bytes_per_weight: of all matrices, with scales; decoder_bytes_per_weight: of the decoder's layers alone.
    weight_bytes: all parameters. needs_sm: oldest compute capability, None for any processor.
    """

    name: str
    bytes_per_weight: float
    decoder_bytes_per_weight: float
    weight_bytes: int
    needs_sm: int | None
    needs_calibration: bool
    engines: tuple[str, ...]

    @property
    def capability(self) -> str:
        """The capability as people write it: `8.9`, or `any`."""
        return "any" if self.needs_sm is None else capability(self.needs_sm)

    def to_dict(self) -> dict[str, Any]:
        """The figures that a recipe's own file does not hold, for JSON."""
        return {
            "bytes_per_weight": round(self.bytes_per_weight, 4),
            "decoder_bytes_per_weight": round(self.decoder_bytes_per_weight, 4),
            "weight_bytes": self.weight_bytes,
            "needs_calibration": self.needs_calibration,
        }


def compare(recipes: Iterable[Recipe], config: NvlmConfig | None = None) -> list[RecipeFigures]:
    """Resolve every recipe for the released NVLM-D-72B, or for the model of `config`.

    Raises:
        NvlmError: a recipe does not fit the model: see `resolve`.
    """
    config = config or NvlmConfig.from_dict(released_style_config(SHAPES[REFERENCE_MODEL]))
    shapes = parameter_shapes(config)
    figures = []
    for recipe in recipes:
        sizes = resolve(recipe, shapes).sizes()
        figures.append(
            RecipeFigures(
                name=recipe.name,
                bytes_per_weight=_bytes_per_weight(sizes),
                decoder_bytes_per_weight=_bytes_per_weight([s for s in sizes if s.part == "language"]),
                weight_bytes=sum(size.after for size in sizes),
                needs_sm=recipe.needs_sm,
                needs_calibration=recipe.needs_calibration,
                engines=tuple(recipe.engines),
            )
        )
    return figures


def _bytes_per_weight(sizes: Iterable[PartSize]) -> float:
    sizes = list(sizes)
    # `linear_before` is in 16 bits.
    return 2 * sum(size.linear_after for size in sizes) / sum(size.linear_before for size in sizes)
