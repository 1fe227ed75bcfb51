"""From logits to the next token, by arithmetic that has the same result on every machine.

The C++ runtime (engines/runtime/src/sampling) chooses the very same tokens. So nothing here depends on a math
library's last bit or on the order in which a sum is vectorized: sums run from the most likely token to
the least likely one, and the exponential is `exact_exp`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_deploy.errors import NvlmError, UsageError

Logits = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

_SMALLEST = -700.0
_ONE_BY_LN2 = float.fromhex("0x1.71547652b82fep+0")
# ln 2 in two parts: the product of the first with any exponent is exact.
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_COEFFICIENTS = [1.0 / math.factorial(k) for k in range(13, -1, -1)]


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
        # numpy promises to keep this generator's stream, and promises less of what is made of it.
        self._generator = np.random.PCG64(sampling.seed)

    def choose(self, logits: Logits) -> int:
        """Return the next token's id from its logits, float32 [vocabulary].

        Raises:
            NvlmError: unless greedy, candidates' logits are NaN or the largest is infinite.
        """
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        ids = np.argsort(-logits, kind="stable")[: self._sampling.top_k or None]
        sums = np.cumsum(self._weights(logits[ids].astype(np.float64)))
        # The token that crosses the threshold still belongs to the nucleus.
        crossing = int(np.searchsorted(sums[:-1], self._sampling.top_p * sums[-1]))
        draw = self._uniform() * sums[crossing]
        place = int(np.searchsorted(sums[: crossing + 1], draw, side="right"))
        return int(ids[min(place, crossing)])

    def _weights(self, logits: Float64s) -> Float64s:
        """Probabilities relative to the first candidate's."""
        if not np.isfinite(logits[0]) or np.isnan(logits[-1]):  # NaN is sorted behind everything else
            raise NvlmError(
                "the engine's logits are not finite", hint="check the engine: nvlm-build verify BUNDLE"
            )
        # A tiny temperature may divide to minus infinity, which has weight 0.
        with np.errstate(over="ignore"):
            return exact_exp((logits - logits[0]) / self._sampling.temperature)

    def _uniform(self) -> float:
        """A number in [0, 1), as `numpy.random.Generator.random` makes it."""
        return float(int(self._generator.random_raw()) >> 11) * 2.0**-53


def exact_exp(x: Float64s) -> Float64s:
    """e^x for x <= 0, with the same bits everywhere; 0 below -700. Relative error below 3e-16.

    Sums, products and powers of two are rounded as IEEE 754 says; a math library's exp is not: numpy's own
    differs between CPUs. x is n ln 2 + r with |r| <= ln 2 / 2, and e^r its Taylor polynomial.
    """
    clipped = np.maximum(x, _SMALLEST)
    exponent = np.rint(clipped * _ONE_BY_LN2)
    rest = (clipped - exponent * _LN2_HIGH) - exponent * _LN2_LOW
    result = np.full_like(rest, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        result = result * rest + coefficient
    return np.where(x < _SMALLEST, 0.0, np.ldexp(result, exponent.astype(np.int32)))


def top_logits(logits: Logits, count: int) -> tuple[tuple[int, float], ...]:
    """Return the `count` largest logits as (id, logit), largest first, ties by id."""
    order = np.argsort(-logits, kind="stable")[:count]
    return tuple((int(i), float(logits[i])) for i in order)
