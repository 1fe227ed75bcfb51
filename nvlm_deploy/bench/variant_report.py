"""What was measured of NVLM-D, X and H: medians, ratios to NVLM-D, and the page that says them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nvlm_deploy.bench.run import speed_up

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VariantWorkload:
    """What a round does: images of so many tiles, thumbnail included; so many tokens after the largest.

    vision_rounds: in how many rounds tiles go through the tower, which is the same in all variants and takes
    most of the time; later rounds go on with its last result and time.
    """

    tiles: tuple[int, ...] = (1, 3, 5, 7)
    decode_tokens: int = 32
    rounds: int = 3
    vision_rounds: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds to the first token: tower and projector; keys and values of tiles; the decoder's prefill."""

    vision: float
    states: float
    prefill: float

    @property
    def total(self) -> float:
        return self.vision + self.states + self.prefill


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """One variant. stages: of every round, by tiles. decode_s: of every round, for all tokens together."""

    variant: str
    engine_bytes: int
    memory_bytes: int | None
    tile_state_bytes: int
    prompt_tokens: dict[int, int]
    stages: dict[int, list[Stages]]
    decode_s: list[float]

    def median_ms(self, tiles: int) -> Stages:
        """Milliseconds of each stage."""
        rounds = self.stages[tiles]
        return Stages(
            *(1000 * statistics.median(values) for values in zip(*map(_seconds, rounds), strict=True))
        )


@dataclass(frozen=True, slots=True)
class VariantReport:
    """A finished run; the first variant is what the others are compared with."""

    shape: str
    interval: int
    recipe: str
    workload: VariantWorkload
    environment: dict[str, Any]
    variants: tuple[VariantFigures, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row per variant."""
        most, reference = max(self.workload.tiles), self.variants[0]
        return [
            {
                "variant": each.variant,
                "engine_mb": each.engine_bytes / 1e6,
                "memory_mb": None if each.memory_bytes is None else each.memory_bytes / 1e6,
                "tile_states_mb": each.tile_state_bytes / 1e6,
                "prompt_tokens": each.prompt_tokens,
                "stages_ms": {n: asdict(each.median_ms(n)) for n in self.workload.tiles},
                "ttft_ms": {n: each.median_ms(n).total for n in self.workload.tiles},
                "vision_share": {
                    n: each.median_ms(n).vision / each.median_ms(n).total for n in self.workload.tiles
                },
                "decode_tokens_per_s": self.workload.decode_tokens / statistics.median(each.decode_s),
                "prefill_x": speed_up(_prefills(reference, most), _prefills(each, most)),
                "prefill_and_states_x": speed_up(_without_tower(reference, most), _without_tower(each, most)),
                "ttft_x": speed_up(_totals(reference, most), _totals(each, most)),
                "decode_x": speed_up(reference.decode_s, each.decode_s),
            }
            for each in self.variants
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "shape": self.shape,
            "cross_attention_every": self.interval,
            "recipe": self.recipe,
            "workload": asdict(self.workload),
            "environment": self.environment,
            "rows": self.rows(),
        }

    def tables(self) -> Iterator[tuple[str, list[Row]]]:
        """Tables to be read by people, each with a sentence before it."""
        most, rows = max(self.workload.tiles), self.rows()
        yield (
            f"An image of {most} tiles, and one answer; ratios are to NVLM-D, round by round.",
            _main(rows, most),
        )
        yield "Milliseconds to the first token by tiles, and the vision tower's share of them.", _times(rows)
        stages = "tower and projector, keys and values of tiles, prefill of the decoder"
        yield f"Where they go with {most} tiles: {stages}.", _parts(rows, most)


def _main(rows: Sequence[dict[str, Any]], most: int) -> list[Row]:
    table: list[Row] = [
        (
            "variant",
            "engine MB",
            "memory MB",
            "tiles' K/V MB",
            "prompt tokens",
            "prefill ms",
            "prefill x",
            "with K/V x",
            "TTFT x",
            "decode tok/s",
        )
    ]
    for row in rows:
        memory = row["memory_mb"]
        table.append(
            (
                row["variant"],
                f"{row['engine_mb']:.1f}",
                "-" if memory is None else f"{memory:.0f}",
                f"{row['tile_states_mb']:.1f}",
                f"{row['prompt_tokens'][most]:,}",
                f"{row['stages_ms'][most]['prefill']:.0f}",
                f"{row['prefill_x']:.2f}",
                f"{row['prefill_and_states_x']:.2f}",
                f"{row['ttft_x']:.2f}",
                f"{row['decode_tokens_per_s']:.1f}",
            )
        )
    return table


def _times(rows: Sequence[dict[str, Any]]) -> list[Row]:
    counts = list(rows[0]["ttft_ms"])
    table: list[Row] = [("variant", *(f"{n} tile{'s' if n > 1 else ''}" for n in counts))]
    for row in rows:
        cells = (f"{row['ttft_ms'][n]:.0f} ({row['vision_share'][n]:.0%})" for n in counts)
        table.append((row["variant"], *cells))
    return table


def _parts(rows: Sequence[dict[str, Any]], most: int) -> list[Row]:
    table: list[Row] = [("variant", "vision ms", "K/V ms", "prefill ms")]
    for row in rows:
        stages = row["stages_ms"][most]
        table.append((row["variant"], *(f"{stages[name]:.1f}" for name in ("vision", "states", "prefill"))))
    return table


def _seconds(stages: Stages) -> tuple[float, float, float]:
    return stages.vision, stages.states, stages.prefill


def _prefills(figures: VariantFigures, tiles: int) -> list[float]:
    return [stages.prefill for stages in figures.stages[tiles]]


def _without_tower(figures: VariantFigures, tiles: int) -> list[float]:
    return [stages.states + stages.prefill for stages in figures.stages[tiles]]


def _totals(figures: VariantFigures, tiles: int) -> list[float]:
    return [stages.total for stages in figures.stages[tiles]]
