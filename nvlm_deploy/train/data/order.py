"""Which sample comes when: a pure function of seed, weights and the number of samples drawn so far.

Every process walks the same order and takes its share of it, so the order depends neither on the
number of workers that read samples nor on when a run was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Draw:
    """The `number`-th sample of the whole order: conversation `index` of the source number `source`."""

    number: int
    source: int
    index: int


@dataclass(slots=True)
class BlendOrder:
    """The order of a blend from a place on.

    `taken` is how many samples of each source came before; with `number`, their sum, it is all the state.
    """

    weights: Sequence[float]
    lengths: Sequence[int]
    seed: int
    number: int = 0
    taken: list[int] = field(default_factory=list)
    _shuffled: dict[int, tuple[int, npt.NDArray[np.int64]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.taken = list(self.taken) or [0] * len(self.weights)

    def state(self) -> dict[str, Any]:
        """What `BlendOrder` takes to go on from here."""
        return {"number": self.number, "taken": list(self.taken)}

    def __iter__(self) -> Iterator[Draw]:
        edges = np.cumsum(self.weights)
        while True:
            place = _uniform(self.seed, self.number) * edges[-1]
            source = min(int(np.searchsorted(edges, place, side="right")), len(edges) - 1)
            epoch, position = divmod(self.taken[source], self.lengths[source])
            draw = Draw(self.number, source, int(self._permutation(source, epoch)[position]))
            self.number += 1
            self.taken[source] += 1
            yield draw

    def _permutation(self, source: int, epoch: int) -> npt.NDArray[np.int64]:
        known = self._shuffled.get(source)
        if known is None or known[0] != epoch:
            generator = np.random.default_rng([self.seed, source, epoch])
            known = self._shuffled[source] = (epoch, generator.permutation(self.lengths[source]))
        return known[1]


def _uniform(seed: int, number: int) -> float:
    """A number in [0, 1) that depends on nothing else, in any release of any library."""
    digest = hashlib.blake2b(f"{seed}-{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
