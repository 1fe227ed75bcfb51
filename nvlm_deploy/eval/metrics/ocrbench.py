"""OCRBench: the answer must hold a reference; expressions (HME100k) are compared without any blanks."""

from __future__ import annotations

from collections.abc import Sequence

from nvlm_deploy.eval.metrics.metric import Extra, Field

_HME_DATASET = "hme100k"
_HME_TYPE = "handwritten mathematical expression recognition"
# As they are called in OCRBench.json, and in the release of Hugging Face.
_DATASETS = ("dataset_name", "dataset")
_TYPES = ("type", "question_type")

FIELDS = (
    *(Field(name, "text", "HME100k: compared without blanks") for name in _DATASETS),
    *(Field(name, "text", "of OCRBench.json; expressions are compared without blanks") for name in _TYPES),
)


def ocrbench(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """1 if any reference is part of the prediction, in lower case; of expressions see `ocrbench_hme`.

    A line is an expression if its `dataset_name` or `dataset` is HME100k, or its `type` or `question_type` is
    the one of these. Source: OCRBench/example.py of Yuliang-Liu/MultimodalOCR. NVIDIA's evaluate_ocrbench.py
    adds one for every reference that is found; here a line counts once, as in the source. An empty reference
    matches an empty answer alone.
    """
    if _named(extra, _DATASETS, _HME_DATASET) or _named(extra, _TYPES, _HME_TYPE):
        return ocrbench_hme(prediction, references, extra)
    return _holds_any(_line(prediction), [_line(reference) for reference in references])


def ocrbench_hme(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """1 if any reference is part of the prediction when blanks and line breaks are removed; case counts."""
    return _holds_any(_dense(prediction), [_dense(reference) for reference in references])


def _named(extra: Extra, keys: Sequence[str], name: str) -> bool:
    return any(str(extra.get(key, "")).lower() == name for key in keys)


def _line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _dense(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _holds_any(answer: str, references: Sequence[str]) -> float:
    return float(any(reference in answer if reference else not answer for reference in references))
