"""Numbers in answers, exactly as they are written."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal

# Exponents of more digits are no answers, and cost memory.
NUMBER = (
    r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?|[-+]?\.\d+(?:[eE][-+]?\d{1,3})?"
)
# Decimal computes with 28 digits.
_CONTEXT_DIGITS = 27
_WHOLE = re.compile(rf"(?:{NUMBER})\.?", re.ASCII)


def parse_number(text: str) -> Decimal | None:
    """The number that `text` is, with commas between thousands or without; None if it is anything else."""
    stripped = text.strip()
    if _WHOLE.fullmatch(stripped) is None:
        return None
    return Decimal(stripped.rstrip(".").replace(",", ""))


def find_numbers(text: str) -> list[Decimal]:
    """All numbers in `text`, in order. A minus counts where no digit or letter stands before it."""
    found = re.finditer(rf"(?<![\w.])(?:{NUMBER})|(?<=[^\W\d])(?:\d+(?:\.\d+)?)", text, re.ASCII)
    return [Decimal(match[0].replace(",", "")) for match in found]


def to_places(number: Decimal, places: int, rounding: str = ROUND_HALF_EVEN) -> Decimal:
    """`number` with so many decimals, or cut off with ROUND_DOWN; too long numbers stay as they are."""
    if number.adjusted() + places >= _CONTEXT_DIGITS:
        return number
    return number.quantize(Decimal(1).scaleb(-places), rounding)
