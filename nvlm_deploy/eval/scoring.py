"""Scores of saved predictions: the lines of a file, one metric, the mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.eval.metrics import Metric
from nvlm_deploy.eval.records import Record, read_json_lines

_FORM_HINT = 'a line is {"prediction": TEXT, "references": [TEXT, ...]}'


@dataclass(slots=True)
class Tally:
    """Scores of samples; `failures` of them have no prediction, and score 0."""

    scores: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.scores)

    @property
    def score(self) -> float:
        """The mean, 0 to 1."""
        return fmean(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"score": self.score, "samples": self.samples, "failures": self.failures}


@dataclass(slots=True)
class ScoreReport:
    """The mean of one metric over all samples, and by the values of one field if that was asked for."""

    metric: str
    all: Tally = field(default_factory=Tally)
    by: str | None = None
    groups: dict[str, Tally] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        report = {"metric": self.metric, **self.all.to_dict()}
        if self.by is not None:
            report[f"by_{self.by}"] = {name: self.groups[name].to_dict() for name in sorted(self.groups)}
        return report


def score_file(metric: Metric, path: Path, by: str | None = None) -> ScoreReport:
    """Score the lines of a JSONL file.

    A line has `prediction`, a text, and `references`, a list of texts, besides what the metric reads; a line
    that has `error` instead of a prediction is a failure.

    Raises:
        NvlmError: the file has no lines, or one is malformed; the message names file, line and field.
    """
    report = score_lines(metric, read_json_lines(path), by)
    if not report.all.samples:
        raise NvlmError(f"{path} has no lines", hint=_FORM_HINT)
    return report


def score_lines(metric: Metric, lines: Iterable[Record], by: str | None = None) -> ScoreReport:
    """Score lines, as `score_file` does."""
    report = ScoreReport(metric.name, by=by)
    for line in lines:
        score = score_line(metric, line)
        tallies = [report.all]
        if by is not None:
            tallies.append(report.groups.setdefault(line.name(by), Tally()))
        for tally in tallies:
            tally.scores.append(score or 0.0)
            tally.failures += score is None
    return report


def score_line(metric: Metric, line: Record) -> float | None:
    """The score of one line; None for a failure.

    Raises:
        NvlmError: the line is malformed.
    """
    failed = "error" in line.raw and "prediction" not in line.raw
    try:
        prediction = "" if failed else line.text("prediction")
        references = line.texts("references")
    except NvlmError as error:
        raise NvlmError(error.message, hint=error.hint or _FORM_HINT) from None
    try:
        metric.check(references, line.raw)
        return None if failed else metric.score(prediction, references, line.raw)
    except NvlmError as error:
        raise NvlmError(f"{line.where}: {error.message}", hint=error.hint) from None
