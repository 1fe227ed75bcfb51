"""Multiple-choice questions in words."""

from __future__ import annotations

import string
from collections.abc import Sequence

LETTER_ONLY = "Answer with the option's letter from the given choices directly."


def with_options(question: str, options: Sequence[str]) -> str:
    """The question, its options as `A. text`, a line each, and the request for a letter."""
    lines = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    return "\n".join([question, *lines, LETTER_ONLY])
