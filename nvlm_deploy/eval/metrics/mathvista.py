"""MathVista: an option, a number or a list of numbers, taken out of the answer by rules, not by GPT-4."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import ROUND_DOWN, Decimal

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.eval.metrics.anls import edit_distance
from nvlm_deploy.eval.metrics.choices import find_choice, options_of, right_letters
from nvlm_deploy.eval.metrics.metric import Extra, Field
from nvlm_deploy.eval.metrics.numbers import find_numbers, parse_number, to_places
from nvlm_deploy.eval.metrics.vqa_text import normalize

FIELDS = (
    Field("choices", "options", "of a multiple-choice question; references are letters or texts of them"),
    Field("answer_type", "text", "integer, float, list or text"),
    Field("precision", "integer", "decimals of a float"),
)

_PLACES = 2
_TYPES = ("integer", "float", "list", "text")
_CONCLUSION = re.compile(r"(?:answer|result)(?:\s+is|\s*[:=])\s*(.*)", re.IGNORECASE | re.DOTALL)
_LIST = re.compile(r"\[([^\[\]]*)\]")


def mathvista(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """1 if the answer means a right choice, or equals a reference in its type.

    Multiple choice: the option that the answer names, else the one whose text is nearest by edit distance
    (`normalize_extracted_answer` of lupantech/MathVista evaluation/calculate_score.py). Integers are cut,
    floats rounded to `precision`, as there; without `answer_type`, numbers are cut to two decimals and texts
    normalized as in VQA, as in Megatron-LM's evaluate_mathvista.py. Numbers compare by value: 5.10 is 5.1,
    and the minus counts, unlike there. Taken is the whole answer, else what follows the last "answer is",
    else the last number.
    """
    options = options_of(extra, "choices")
    if options:
        return float(_chosen(prediction, options) in right_letters(references, options))
    kind = extra.get("answer_type")
    if kind not in (None, *_TYPES):
        raise NvlmError(f"answer_type is {kind!r}; known: {', '.join(_TYPES)}")
    return float(any(_equal(prediction, reference, kind, extra.get("precision")) for reference in references))


def _chosen(answer: str, options: dict[str, str]) -> str | None:
    text = answer.strip()
    if not text:
        return None
    for letter, option in options.items():
        if option == text:
            return letter
    return find_choice(text, options) or min(options, key=lambda key: edit_distance(text, options[key]))


def _equal(prediction: str, reference: str, kind: str | None, precision: int | None) -> bool:
    if kind == "list":
        wanted_list = _numbers_of_list(reference)
        if wanted_list is None:
            raise NvlmError(f"a reference is {reference!r}, which is no list of numbers")
        return _numbers_of_list(prediction) == wanted_list
    wanted = parse_number(reference.strip().rstrip("%"))
    if kind == "text" or wanted is None:
        return normalize(_conclusion(prediction)) == normalize(reference)
    given = _number(prediction)
    if given is None:
        return False
    if kind == "integer":
        return to_places(given, 0, ROUND_DOWN) == to_places(wanted, 0, ROUND_DOWN)
    if kind == "float" and precision is not None:
        return to_places(given, precision) == to_places(wanted, precision)
    return to_places(given, _PLACES, ROUND_DOWN) == to_places(wanted, _PLACES, ROUND_DOWN)


def _number(answer: str) -> Decimal | None:
    whole = parse_number(answer.strip().rstrip("%"))
    if whole is not None:
        return whole
    concluding = find_numbers(_conclusion(answer)) if _CONCLUSION.search(answer) else []
    every = find_numbers(answer)
    return concluding[0] if concluding else every[-1] if every else None


def _conclusion(answer: str) -> str:
    """What follows the last "answer is", or all of it."""
    while found := _CONCLUSION.search(answer):
        answer = found[1]
    return answer.strip().strip('"')


def _numbers_of_list(text: str) -> list[Decimal] | None:
    """The numbers of the last `[...]`; None if there is none, or something else is in it."""
    found = _LIST.findall(text)
    numbers = [parse_number(item) for item in found[-1].split(",")] if found else [None]
    return None if None in numbers else [number for number in numbers if number is not None]
