"""Exact match, of AI2D and RealWorldQA, and the strict form without normalization."""

from __future__ import annotations

import string
from collections.abc import Sequence

from nvlm_deploy.eval.metrics.metric import Extra
from nvlm_deploy.eval.metrics.vqa_text import normalize


def exact(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """1 if the prediction equals a reference, both normalized as in the VQA evaluation.

    Source: the branch of AI2D in `compute_vqa_accuracy` of Megatron-LM
    examples/multimodal/evaluation/evaluate_vqav2.py. Not kept: there the answer `A` normalizes to nothing, as
    does no answer, and the two are equal. Here what normalizes to nothing is compared without the punctuation
    around it, in lower case.
    """
    answer = _words(prediction)
    return float(any(_words(reference) == answer for reference in references))


def exact_strict(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """1 if the prediction equals a reference character by character, blank space at the ends aside."""
    return float(prediction.strip() in {reference.strip() for reference in references})


def _words(text: str) -> str:
    return normalize(text) or text.strip(string.punctuation + string.whitespace).lower()
