"""`--budget`: mean bits per weight, or bytes of all weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nvlm_deploy.errors import UsageError

_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True, slots=True)
class Budget:
    """Either mean bits per weight of the matrices that get formats, or bytes of the whole model."""

    text: str
    bits: float | None
    nbytes: int | None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse `4.5bits` or `40GB` (powers of 1,000), with or without a space."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(bits|kB|MB|GB|TB)", text.strip())
        if found is None or float(found[1]) == 0:
            raise UsageError(
                f"the budget '{text}' is no size", hint="for example --budget 5bits, --budget 40GB"
            )
        amount, unit = float(found[1]), found[2]
        if unit == "bits":
            return cls(text, amount, None)
        return cls(text, None, int(amount * _UNITS[unit]))

    def left(self, weights: int, fixed: int) -> int:
        """Bytes for the matrices.

        Args:
            weights: numbers in the matrices.
            fixed: bytes of everything else: embedding, norms, biases.
        """
        if self.bits is not None:
            return int(self.bits * weights / 8)
        assert self.nbytes is not None
        return self.nbytes - fixed
