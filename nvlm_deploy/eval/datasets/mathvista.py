"""MathVista: `testmini.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvlm_deploy.eval.datasets.example import DatasetFiles, Example, shown
from nvlm_deploy.eval.datasets.options import with_options
from nvlm_deploy.eval.records import Record, read_json


def read_mathvista(files: DatasetFiles) -> Sequence[Example]:
    """An object of problems by `pid`; prompts as in `MathVistaDataset` of Megatron-LM's evaluation.

    Multiple-choice questions get their options and the request for a letter; others are asked by `query`
    without its word "Hint", if the file has one, else by `question`.
    """
    data = Record.of(read_json(files.data), str(files.data))
    return [
        _example(Record.of(problem, f"{files.data}: {pid}"), pid, files) for pid, problem in data.raw.items()
    ]


def _example(record: Record, pid: str, files: DatasetFiles) -> Example:
    extra: dict[str, Any] = {key: record.text(key) for key in ("question_type", "answer_type")}
    if record.raw.get("precision") is not None:
        extra["precision"] = _precision(record)
    if record.raw.get("choices"):
        extra["choices"] = record.texts("choices")
        text = with_options(record.text("question"), extra["choices"])
    else:
        key = "query" if "query" in record.raw else "question"
        text = record.text(key).replace("Hint: ", "")
    references = (record.text("answer"),) if record.raw.get("answer") else ()
    return Example(pid, shown(files.images / record.text("image"), text), references, extra)


def _precision(record: Record) -> int:
    value = record.get("precision")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise record.fail("precision", f"must be a whole number, not {value!r}")
    return int(value)
