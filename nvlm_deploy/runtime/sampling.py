"""From logits to the next token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_deploy.errors import UsageError

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen; the default is greedy.

    Attributes:
        temperature: 0 takes the most likely token and ignores the rest.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens until their probabilities reach this sum, after `top_k`.
        seed: of this request's own generator; the same seed gives the same text, also in a batch.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature is {self.temperature}; it must be 0 (greedy) or positive")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; it must be 0 (all tokens) or positive")
        if not 0 < self.top_p <= 1:
            raise UsageError(
                f"top_p is {self.top_p}; it must lie above 0 and at most at 1",
                hint="the released config's top_p 0 means greedy decoding: temperature=0",
            )
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; it must not be negative")


class Sampler:
    """The choices of one request, in order."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: Logits) -> int:
        """Return the next token's id from its logits, float32 [vocabulary]."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        ids, probabilities = self._candidates(logits)
        return int(self._random.choice(ids, p=probabilities))

    def _candidates(self, logits: Logits) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        order = np.argsort(-logits, kind="stable")
        if self._sampling.top_k:
            order = order[: self._sampling.top_k]
        scaled = logits[order].astype(np.float64) / self._sampling.temperature
        probabilities = np.exp(scaled - scaled[0])
        probabilities /= probabilities.sum()
        # The token that crosses the threshold still belongs to the nucleus.
        before = np.cumsum(probabilities) - probabilities
        kept = before < self._sampling.top_p
        probabilities = probabilities[kept]
        return order[kept], probabilities / probabilities.sum()


def top_logits(logits: Logits, count: int) -> tuple[tuple[int, float], ...]:
    """Return the `count` largest logits as (id, logit), largest first, ties by id."""
    order = np.argsort(-logits, kind="stable")[:count]
    return tuple((int(i), float(logits[i])) for i in order)
