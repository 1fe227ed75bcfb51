"""Which samples share a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Size(NamedTuple):
    """What a sample takes of a sequence."""

    tokens: int
    tiles: int


def choose_samples(waiting: Sequence[Size], max_tokens: int, max_tiles: int | None = None) -> list[int]:
    """Choose samples for one sequence: the one that waits longest, then always the longest that still fits.

    The first is taken whatever its tiles are, so no sample waits forever. Equal ones go by age.

    Returns:
        Places in `waiting`, in their order there.
    """
    chosen = [0]
    tokens, tiles = waiting[0]
    for place in sorted(range(1, len(waiting)), key=lambda place: (-waiting[place].tokens, place)):
        more = waiting[place]
        fits = tokens + more.tokens <= max_tokens
        if fits and (max_tiles is None or tiles + more.tiles <= max_tiles):
            chosen.append(place)
            tokens, tiles = tokens + more.tokens, tiles + more.tiles
    return sorted(chosen)
