"""All metrics by name."""

from __future__ import annotations

from nvlm_deploy.errors import UsageError, did_you_mean
from nvlm_deploy.eval.metrics import exact, gsm8k, mathvista, mmlu, mmmu, ocrbench, relaxed, vqa
from nvlm_deploy.eval.metrics.anls import anls
from nvlm_deploy.eval.metrics.metric import Metric

_ALL = (
    Metric("vqa", "VQAv2, TextVQA: min(1, equal references / 3)", vqa.vqa),
    Metric(
        "vqa-leave-one-out",
        "the same as the VQA server computes it: mean over all but one reference",
        vqa.vqa_leave_one_out,
        min_references=2,
    ),
    Metric("anls", "DocVQA, InfographicVQA: 1 - normalized edit distance if that is below 0.5", anls),
    Metric("relaxed", "ChartQA: numbers within 5 %, words exactly", relaxed.relaxed),
    Metric("exact", "AI2D, RealWorldQA: equal after the normalization of VQA", exact.exact),
    Metric("exact-strict", "equal character by character", exact.exact_strict),
    Metric("ocrbench", "OCRBench: a reference is part of the answer", ocrbench.ocrbench, ocrbench.FIELDS),
    Metric("ocrbench-hme", "the same for expressions, without blanks", ocrbench.ocrbench_hme),
    Metric("mmmu", "MMMU: the option, or the short answer, that the answer names", mmmu.mmmu, mmmu.FIELDS),
    Metric("mathvista", "MathVista: option, number or list", mathvista.mathvista, mathvista.FIELDS),
    Metric("gsm8k", "GSM8K: the last number, or the one that is marked", gsm8k.gsm8k),
    Metric("gsm8k-strict", "the same for marked numbers alone", gsm8k.gsm8k_strict),
    Metric("mmlu", "MMLU: the letter that the answer names", mmlu.mmlu, mmlu.FIELDS),
)
METRICS = {metric.name: metric for metric in _ALL}


def find_metric(name: str) -> Metric:
    """Return a metric by its name.

    Raises:
        UsageError: there is none; suggests the nearest.
    """
    if name not in METRICS:
        raise UsageError(f"there is no metric '{name}'", hint=did_you_mean(name, METRICS))
    return METRICS[name]
