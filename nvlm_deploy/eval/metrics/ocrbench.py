"""OCRBench: the answer must hold a reference; expressions (HME100k) are compared without any blanks."""

from __future__ import annotations

from collections.abc import Sequence

from nvlm_deploy.eval.metrics.metric import Extra, Field

_HME_DATASET = "HME100k"
_HME_TYPE = "Handwritten Mathematical Expression Recognition"

FIELDS = (
    Field("dataset_name", "text", f"{_HME_DATASET}: compared without blanks"),
    Field("type", "text", f"{_HME_TYPE}: compared without blanks"),
)


def ocrbench(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """1 if any reference is part of the prediction, in lower case; of expressions see `ocrbench_hme`.

    A line is an expression if its `dataset_name` is HME100k, or its `type` the one of OCRBench.json. Source:
    OCRBench/example.py of Yuliang-Liu/MultimodalOCR. NVIDIA's evaluate_ocrbench.py adds one for every
    reference that is found; here a line counts once, as in the source. An empty reference matches an empty
    answer alone.
    """
    if extra.get("dataset_name") == _HME_DATASET or extra.get("type") == _HME_TYPE:
        return ocrbench_hme(prediction, references, extra)
    return _holds_any(_line(prediction), [_line(reference) for reference in references])


def ocrbench_hme(prediction: str, references: Sequence[str], extra: Extra) -> float:
    """1 if any reference is part of the prediction when blanks and line breaks are removed; case counts."""
    return _holds_any(_dense(prediction), [_dense(reference) for reference in references])


def _line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _dense(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _holds_any(answer: str, references: Sequence[str]) -> float:
    return float(any(reference in answer if reference else not answer for reference in references))
