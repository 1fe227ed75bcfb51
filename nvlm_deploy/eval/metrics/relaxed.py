"""Relaxed accuracy, of ChartQA: numbers within 5 %, everything else exactly."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from nvlm_deploy.eval.metrics.metric import Extra
from nvlm_deploy.eval.metrics.numbers import parse_number
from nvlm_deploy.eval.metrics.vqa_text import normalize

_TOLERANCE = Decimal("0.05")


def relaxed(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """1 if the prediction is within 5 % of a reference that is a number, or equals one in normalized words.

    Source: Masry et al. 2022, section 5.1, and `compute_vqa_accuracy` of Megatron-LM
    examples/multimodal/evaluation/evaluate_vqav2.py, with its percent rule: a trailing % is dropped on both
    sides, so that 5% equals 5. (ChartQA's other evaluators read 5% as 0.05.) Kept: years are numbers, too,
    and get their 5 %. Not kept: NVIDIA's code loses minus signs in its normalization.
    """
    return float(any(_matches(prediction, reference) for reference in references))


def _matches(prediction: str, reference: str) -> bool:
    given, wanted = _number(prediction), _number(reference)
    if given is not None and wanted is not None:
        return abs(given - wanted) <= _TOLERANCE * abs(wanted)
    return _words(prediction) == _words(reference)


def _number(text: str) -> Decimal | None:
    number = parse_number(text.strip().rstrip("%"))
    return parse_number(_words(text)) if number is None else number


def _words(text: str) -> str:
    return normalize(text).rstrip("%").strip()
