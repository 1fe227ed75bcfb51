"""Questions without images: GSM8K and MMLU."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.eval.datasets.example import DatasetFiles, Example
from nvlm_deploy.eval.datasets.options import with_options
from nvlm_deploy.eval.records import read_json_lines

_MMLU_COLUMNS = 6


def read_gsm8k(files: DatasetFiles) -> Sequence[Example]:
    """`test.jsonl`: `{question, answer}`; the answer is a solution that ends with `#### number`."""
    return [
        Example(str(number), (record.text("question"),), (record.text("answer"),))
        for number, record in enumerate(read_json_lines(files.data), start=1)
    ]


def read_mmlu(files: DatasetFiles) -> Sequence[Example]:
    """`SUBJECT_test.csv`, or the folder of them: question, four options, the right letter, and no header.

    The paper does not say how many examples it gave (`shots`); here none are given.
    """
    paths = sorted(files.data.glob("*_test.csv")) if files.data.is_dir() else [files.data]
    if not paths:
        raise NvlmError(
            f"{files.data} has no *_test.csv", hint="give the folder `test` of the release, or a file"
        )
    return [example for path in paths for example in _read_subject(path)]


def _read_subject(path: Path) -> list[Example]:
    subject = path.stem.removesuffix("_test")
    examples = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                examples.append(_question(row, f"{path}: row {number}", f"{subject}-{number}", subject))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise NvlmError(f"{path} cannot be read: {error}") from None
    return examples


def _question(row: list[str], where: str, name: str, subject: str) -> Example:
    if len(row) != _MMLU_COLUMNS:
        raise NvlmError(f"{where} has {len(row)} columns, not {_MMLU_COLUMNS}: question, A, B, C, D, answer")
    question, *options, answer = row
    return Example(
        name, (with_options(question, options),), (answer,), {"options": options, "subject": subject}
    )
