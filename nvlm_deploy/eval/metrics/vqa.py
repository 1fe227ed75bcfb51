"""VQA accuracy, of VQAv2 and TextVQA: how many of the people who were asked gave the same answer."""

from __future__ import annotations

from collections.abc import Sequence

from nvlm_deploy.eval.metrics.metric import Extra
from nvlm_deploy.eval.metrics.vqa_text import normalize

_ENOUGH = 3


def vqa(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """min(1, equal references / 3), all normalized.

    Source: `compute_vqa_accuracy` of Megatron-LM examples/multimodal/evaluation/evaluate_vqav2.py, which NVLM
    was evaluated with. Data sets have ten references; with one or two, 1 cannot be reached.
    """
    return min(1.0, _matches(prediction, references) / _ENOUGH)


def vqa_leave_one_out(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """The mean of `vqa` over all choices of N - 1 of the N references, as the VQA server computes it.

    Source: `VQAEval.evaluate` of GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py. There,
    references that are all equal are compared without normalization; here they are normalized, too.
    """
    count, matches = len(references), _matches(prediction, references)
    left_out_match = min(1.0, max(matches - 1, 0) / _ENOUGH)
    left_out_other = min(1.0, matches / _ENOUGH)
    return (matches * left_out_match + (count - matches) * left_out_other) / count


def _matches(prediction: str, references: Sequence[str]) -> int:
    answer = normalize(prediction)
    return sum(normalize(reference) == answer for reference in references)
