"""MMMU: Parquet files of the Hugging Face release, or JSONL with the same columns."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.eval.datasets.example import DatasetFiles, Example, Part
from nvlm_deploy.eval.datasets.options import LETTER_ONLY
from nvlm_deploy.eval.datasets.parquet import read_parquet
from nvlm_deploy.eval.datasets.vqa import SHORT_ANSWER
from nvlm_deploy.eval.records import Record, read_json_lines

_MARK = re.compile(r"<image (\d)>")
_SUBJECT = re.compile(r"^(?:dev|validation|test)_(.+)_\d+$")
_SECRET = "?"


def read_mmmu(files: DatasetFiles) -> Sequence[Example]:
    """A `.parquet` or `.jsonl` file, or a folder with `SUBJECT/validation-*.parquet`.

    `<image 1>` in question and options is the place of that image. In JSONL, images are names of files.
    """
    return [_example(record, files.images) for record in _records(files.data)]


def _records(data: Path) -> Iterator[Record]:
    if data.suffix == ".jsonl":
        yield from read_json_lines(data)
        return
    paths = sorted(data.rglob("validation-*.parquet")) if data.is_dir() else [data]
    if not paths:
        raise NvlmError(
            f"{data} has no validation-*.parquet", hint="give the folder of the release, or a file"
        )
    for path in paths:
        yield from read_parquet(path)


def _example(record: Record, images: Path) -> Example:
    name, options = record.text("id"), _options(record)
    references = _answers(record)
    extra: dict[str, Any] = {"options": options} if options else {}
    subject = _SUBJECT.match(name)
    if subject:
        extra["subject"] = subject[1]
    lines = [record.text("question").strip(), ""]
    if options:
        lines += [f"({chr(ord('A') + i)}) {option}" for i, option in enumerate(options)]
        lines += ["", LETTER_ONLY]
    else:
        lines.append(SHORT_ANSWER)
    text = "\n".join(lines)
    return Example(name, _placed(text, record, images), () if _SECRET in references else references, extra)


def _options(record: Record) -> list[str]:
    """Options; the text of a Python list in the release."""
    options = _listed(record, "options")
    return options if record.text("question_type") == "multiple-choice" else []


def _answers(record: Record) -> tuple[str, ...]:
    """Right answers: one text, or several as a list or the text of one."""
    value = record.get("answer")
    if isinstance(value, str) and not value.startswith("['"):
        return (value,)
    return tuple(_listed(record, "answer"))


def _listed(record: Record, key: str) -> list[str]:
    value = record.get(key)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise record.fail(key, f"is no list: {value!r}") from None
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise record.fail(key, f"must be a list of texts, not {value!r}")
    return value


def _placed(text: str, record: Record, images: Path) -> tuple[Part, ...]:
    pieces = _MARK.split(text)
    parts: list[Part] = []
    for i, piece in enumerate(pieces):
        if i % 2:
            parts.append(_image(record, f"image_{piece}", images))
        elif piece:
            parts.append(piece)
    if len(pieces) == 1 and record.raw.get("image_1"):
        parts.insert(0, _image(record, "image_1", images))
    return tuple(parts)


def _image(record: Record, key: str, images: Path) -> Path | bytes:
    value = record.get(key)
    if isinstance(value, str):
        return images / value
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        content: bytes = value["bytes"]
        return content
    raise record.fail(key, "is named in the question, and holds neither the name nor the bytes of an image")
