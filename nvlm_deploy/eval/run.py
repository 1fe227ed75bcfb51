"""A benchmark run: questions from files, answers of a model, predictions that survive a kill, a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.eval.answerers import Generator, model_identity, open_generator
from nvlm_deploy.eval.datasets import DatasetFiles, DatasetFormat, Example, read_dataset
from nvlm_deploy.eval.metrics import Metric
from nvlm_deploy.eval.predictions import PredictionFile, open_predictions
from nvlm_deploy.eval.scoring import ScoreReport, score_lines
from nvlm_deploy.progress import ProgressCallback, no_progress

_NAMED_FAILURES = 3


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What is asked of whom.

    metric: None if predictions are all that is wanted. limit: questions from the start; None for all.
    max_failures: samples without an answer (an image that cannot be read, a prompt that is too long) that
    are taken before the run ends with an error. by: a field that scores are grouped by.
    """

    model: Path
    format: DatasetFormat
    files: DatasetFiles
    metric: Metric | None
    output: Path
    limit: int | None = None
    max_new_tokens: int = 1024
    max_failures: int = 10
    by: str | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class RunReport:
    """What came of it. `score` is None without a metric, or where the data set keeps its answers secret."""

    dataset: str
    samples: int
    failed: tuple[tuple[str, str], ...]
    score: ScoreReport | None
    predictions: Path

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        scores = {"metric": None, "score": None} if self.score is None else self.score.to_dict()
        return {
            "dataset": self.dataset,
            **scores,
            "samples": self.samples,
            "failures": len(self.failed),
            "failed": [{"id": name, "error": error} for name, error in self.failed],
            "predictions": str(self.predictions),
        }


def run_benchmark(request: RunRequest, progress: ProgressCallback = no_progress) -> RunReport:
    """Answer the questions that have no prediction yet, in the order of the data set, and score all of them.

    Raises:
        UsageError: the output is of other settings: another model, data set or length of answers.
        NvlmError: a file is not in order, the references do not fit the metric, or too many samples failed.
    """
    examples = read_dataset(request.format, request.files)
    _check_references(examples, request.metric)
    settings = {
        "format_version": 1,
        "model": model_identity(request.model),
        "dataset": {"samples": len(examples), "digest": _digest(examples)},
        "max_new_tokens": request.max_new_tokens,
    }
    asked = examples[: request.limit]
    with open_predictions(request.output, settings, [example.id for example in examples]) as predictions:
        if len(predictions.lines) < len(asked):
            generate = open_generator(request.model, request.device)
            _answer_rest(asked, predictions, generate, request, progress)
        lines = predictions.lines[: len(asked)]
    failed = tuple((line.name("id"), line.text("error")) for line in lines if "prediction" not in line.raw)
    scored = request.metric is not None and bool(asked[0].references)
    report = score_lines(request.metric, lines, request.by) if request.metric and scored else None
    return RunReport(request.format.name, len(lines), failed, report, request.output)


def _answer_rest(
    asked: Sequence[Example],
    predictions: PredictionFile,
    generate: Generator,
    request: RunRequest,
    progress: ProgressCallback,
) -> None:
    failures = [line for line in predictions.lines if "prediction" not in line.raw]
    for example in asked[len(predictions.lines) :]:
        try:
            outcome = {"prediction": generate(example.messages(), (), request.max_new_tokens)}
        except NvlmError as error:
            outcome = {"error": error.message}
        predictions.append(_line(example, outcome))
        if "error" in outcome:
            failures.append(predictions.lines[-1])
            if len(failures) > request.max_failures:
                raise _too_many(failures, request)
        progress(request.format.name, len(predictions.lines), len(asked))


def _line(example: Example, outcome: dict[str, str]) -> dict[str, Any]:
    question = "\n".join(part for part in example.parts if isinstance(part, str))
    own = {"id": example.id, "question": question, **outcome, "references": list(example.references)}
    extra = {key: value for key, value in example.extra.items() if key not in ("prediction", "error")}
    return {**own, **{key: value for key, value in extra.items() if key not in own}}


def _too_many(failures: Sequence[Any], request: RunRequest) -> NvlmError:
    named = "; ".join(f"{line.raw['id']}: {line.raw['error']}" for line in failures[:_NAMED_FAILURES])
    more = f"; and {len(failures) - _NAMED_FAILURES} more" if len(failures) > _NAMED_FAILURES else ""
    return NvlmError(
        f"{len(failures)} samples have no answer, and the limit is {request.max_failures}: {named}{more}",
        hint=f"mend them and start anew, or go on with a larger --max-failures; all are in {request.output}",
    )


def _check_references(examples: Sequence[Example], metric: Metric | None) -> None:
    """Find what a metric cannot use before the model is opened."""
    with_references = bool(examples[0].references)
    for example in examples:
        if bool(example.references) != with_references:
            raise NvlmError(
                f"sample '{example.id}': references are {'missing' if with_references else 'there'}, "
                f"unlike those of '{examples[0].id}'"
            )
        if metric is not None and with_references:
            try:
                metric.check(example.references, example.extra)
            except NvlmError as error:
                raise NvlmError(f"sample '{example.id}': {error.message}", hint=error.hint) from None


def _digest(examples: Sequence[Example]) -> str:
    digest = sha256()
    for example in examples:
        digest.update(example.digest().encode())
    return digest.hexdigest()
