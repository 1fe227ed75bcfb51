"""MMMU: a letter, or a short answer that is looked for in the words of a longer one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from nvlm_deploy.eval.metrics.choices import find_choice, options_of, right_letters
from nvlm_deploy.eval.metrics.metric import Extra, Field
from nvlm_deploy.eval.metrics.numbers import parse_number, to_places

FIELDS = (Field("options", "options", "of a multiple-choice question; without it the question is open"),)

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NOTHING = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d{1,3}"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def mmmu(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """1 if the answer means a right option, or holds a right short answer.

    Source: eval/eval_utils.py of MMMU-Benchmark/MMMU. An answer that names no option counts as the first
    one, as in Megatron-LM's mmmu_utils.py (the original draws one at random); an empty answer is wrong.
    """
    options = options_of(extra, "options")
    if not options:
        return float(_holds_answer(prediction, references))
    right = right_letters(references, options)
    if not prediction.strip():
        return 0.0
    return float((find_choice(prediction, options) or next(iter(options))) in right)


def _holds_answer(prediction: str, references: Sequence[str]) -> bool:
    """Whether a conclusion of the prediction holds a reference's text, or its number to two places."""
    conclusions = _conclusions(prediction)
    found = [text for part in conclusions for pattern in _NUMBERS for text in pattern.findall(part)]
    given = [_comparable(text) for text in [*conclusions, *found]]
    for reference in references:
        wanted = _comparable(reference)
        if isinstance(wanted, Decimal):
            if wanted in given:
                return True
        elif any(isinstance(text, str) and _holds(text, wanted) for text in given):
            return True
    return False


def _holds(text: str, wanted: str) -> bool:
    # One character alone would be found nearly everywhere, so it must have a blank beside it.
    if len(wanted) == 1:
        return text == wanted or f" {wanted}" in text or f"{wanted} " in text
    return bool(wanted) and wanted in text


def _conclusions(answer: str) -> list[str]:
    """What follows words like `is` or `therefore` in each line, the shortest of it; without any, the answer.

    Kept: the original splits into sentences at a capital letter after it has put all in lower case, so that
    only line breaks split.
    """
    lines = answer.strip().strip(".").lower().split("\n")
    conclusions = []
    for number, line in enumerate(lines, start=1):
        indicators = (*_INDICATORS, "=") if number == len(lines) else _INDICATORS
        shortest = ""
        for tail in (line.split(word)[-1].strip() for word in indicators if word in line):
            # An empty tail undoes those before it, as in the original.
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _NOTHING:
            conclusions.append(shortest)
    return conclusions or ["\n".join(lines)]


def _comparable(text: str) -> str | Decimal:
    number = parse_number(text)
    return text.strip().lower() if number is None else to_places(number, 2)
