"""VQAv2 and TextVQA: ten answers to a question.

Prompts of these and the other readers are those of examples/multimodal/run_text_generation.py of Megatron-LM,
at the release of NVLM; its system message is the default one of this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.eval.datasets.example import DatasetFiles, Example, shown
from nvlm_deploy.eval.records import Record, read_json

SHORT_ANSWER = "Answer the question using a single word or phrase."


def read_vqav2(files: DatasetFiles) -> Sequence[Example]:
    """`v2_OpenEnded_mscoco_*_questions.json`, with the annotations in `v2_mscoco_*_annotations.json`.

    Images are those of COCO: `COCO_val2014_000000262148.jpg`, the second word from `data_subtype` of the
    questions (test-dev2015 has the images of test2015).
    """
    data = Record.of(read_json(files.data), str(files.data))
    subset = data.text("data_subtype").replace("test-dev", "test")
    annotations = _annotations(files.annotations) if files.annotations else None
    examples = []
    for i, item in enumerate(data.items("questions")):
        record = Record.of(item, f"{files.data}: questions[{i}]")
        name = record.name("question_id")
        if annotations is not None and name not in annotations:
            raise NvlmError(f"{record.where}: question_id {name} has no annotation in {files.annotations}")
        image = files.images / f"COCO_{subset}_{record.integer('image_id'):012d}.jpg"
        references = _answers(annotations[name]) if annotations is not None else ()
        extra = _types(annotations[name]) if annotations is not None else {}
        text = f"{record.text('question')}\n{SHORT_ANSWER}"
        examples.append(Example(name, shown(image, text), references, extra))
    return examples


def read_textvqa(files: DatasetFiles) -> Sequence[Example]:
    """`TextVQA_0.5.1_val.json`; images are `IMAGE_ID.jpg`."""
    data = Record.of(read_json(files.data), str(files.data))
    examples = []
    for i, item in enumerate(data.items("data")):
        record = Record.of(item, f"{files.data}: data[{i}]")
        image = files.images / f"{record.text('image_id')}.jpg"
        references = tuple(record.texts("answers")) if "answers" in record.raw else ()
        text = f"{record.text('question')}\n{SHORT_ANSWER}"
        examples.append(Example(record.name("question_id"), shown(image, text), references))
    return examples


def _annotations(path: Path) -> dict[str, Record]:
    records = [
        Record.of(item, f"{path}: annotations[{i}]")
        for i, item in enumerate(Record.of(read_json(path), str(path)).items("annotations"))
    ]
    return {record.name("question_id"): record for record in records}


def _answers(annotation: Record) -> tuple[str, ...]:
    answers = annotation.items("answers")
    return tuple(
        Record.of(answer, f"{annotation.where}.answers[{i}]").text("answer")
        for i, answer in enumerate(answers)
    )


def _types(annotation: Record) -> dict[str, Any]:
    return {key: annotation.raw[key] for key in ("question_type", "answer_type") if key in annotation.raw}
