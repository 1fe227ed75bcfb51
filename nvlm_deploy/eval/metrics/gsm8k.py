"""GSM8K: the number at the end of a solution in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.eval.metrics.metric import Extra
from nvlm_deploy.eval.metrics.numbers import find_numbers, parse_number

_MARKED = (
    re.compile(r"####\s*(-?[$0-9.,]+)"),
    re.compile(r"answer is:?\s*\**(-?[$0-9.,]+)", re.IGNORECASE),
    re.compile(r"\\boxed\{([^{}]*)\}"),
)


def gsm8k(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """1 if the number after `####`, "answer is" or in `\\boxed{}`, else the last one, equals a reference.

    References are numbers, or solutions that end with `#### number`, as in the data. Source: filters
    strict-match and flexible-extract of EleutherAI/lm-evaluation-harness lm_eval/tasks/gsm8k. Dollars and
    commas do not count, and numbers compare by value.
    """
    given = _marked(prediction)
    if given is None:
        given = next(reversed(find_numbers(prediction.replace("$", ""))), None)
    return _score(given, references)


def gsm8k_strict(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """As `gsm8k`, for marked numbers alone."""
    return _score(_marked(prediction), references)


def _score(given: Decimal | None, references: Sequence[str]) -> float:
    return float(given in [_reference(text, i) for i, text in enumerate(references)])


def _marked(text: str) -> Decimal | None:
    for pattern in _MARKED:
        found = pattern.findall(text)
        number = _plain(found[-1]) if found else None
        if number is not None:
            return number
    return None


def _reference(text: str, index: int) -> Decimal:
    number = _plain(text.rsplit("####", 1)[-1])
    if number is None:
        raise NvlmError(f"references.{index} is {text!r}, and ends with no number")
    return number


def _plain(text: str) -> Decimal | None:
    return parse_number(text.replace("$", "").replace(",", ""))
