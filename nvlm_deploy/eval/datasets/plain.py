"""The plain format: JSONL with images, a question and references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvlm_deploy.eval.datasets.example import DatasetFiles, Example
from nvlm_deploy.eval.records import Record, read_json_lines

_OWN = frozenset(("id", "image", "images", "question", "references"))


def read_plain(files: DatasetFiles) -> Sequence[Example]:
    """Lines `{"id", "image" or "images", "question", "references", ...}`; all but `question` may be left out.

    Images stand before the question, which is asked as it is. Other fields are passed on to the metric.
    """
    return [
        _example(record, number, files.images)
        for number, record in enumerate(read_json_lines(files.data), start=1)
    ]


def _example(record: Record, number: int, images: Path) -> Example:
    names = []
    if "image" in record.raw:
        names.append(record.text("image"))
    if "images" in record.raw:
        names += record.texts("images")
    references = record.texts("references") if "references" in record.raw else []
    return Example(
        id=record.name("id") if "id" in record.raw else str(number),
        parts=(*(images / name for name in names), record.text("question")),
        references=tuple(references),
        extra={key: value for key, value in record.raw.items() if key not in _OWN},
    )
