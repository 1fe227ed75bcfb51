"""The largest tiles x context x batch that a device holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.target import Target
from nvlm_deploy.planner.memory import rank_memory
from nvlm_deploy.planner.shards import Parallel
from nvlm_deploy.planner.sizes import Sizes
from nvlm_deploy.planner.workload import Workload, shortest_context

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Largest:
    """Limits of a device: each of tiles, context and batch with the other two as asked for; None: none fits.

    `frontier`: for every batch that fits at all, the longest context with the tiles that were asked for.
    """

    tiles: int | None
    context: int | None
    batch: int | None
    frontier: tuple[tuple[int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "tiles": self.tiles,
            "context": self.context,
            "batch": self.batch,
            "frontier": [{"batch": batch, "context": context} for batch, context in self.frontier],
        }


def largest_that_fits(
    config: NvlmConfig, sizes: Sizes, target: Target, parallel: Parallel, load: Workload
) -> Largest:
    """Search what `target` holds; its memory is known."""
    usable = target.usable_bytes
    assert usable is not None, "asked for targets whose memory is known"

    def fits(tried: Workload) -> bool:
        enough = tried.context >= shortest_context(config, tried.encoded_tiles)
        return enough and rank_memory(config, sizes, target, parallel, tried).total <= usable

    ceiling = config.language.max_position_embeddings
    shortest = shortest_context(config, load.encoded_tiles)

    def context(batch: int) -> int | None:
        return _most(shortest, ceiling, lambda n: fits(replace(load, context=n, batch=batch)))

    reached = [(batch, context(batch)) for batch in _BATCHES]
    return Largest(
        tiles=_most(1, config.max_tiles, lambda n: fits(replace(load, tiles=n))),
        context=context(load.batch),
        batch=_most(1, _BATCHES[-1], lambda n: fits(replace(load, batch=n))),
        frontier=tuple((batch, most) for batch, most in reached if most is not None),
    )


def _most(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number of [low, high] that fits, if all smaller ones fit, too; None if `low` does not."""
    if low > high or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
