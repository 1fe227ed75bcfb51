"""Documents, charts and text in images: DocVQA, InfographicVQA, ChartQA, OCRBench, AI2D, RealWorldQA."""

from __future__ import annotations

from collections.abc import Sequence

from nvlm_deploy.eval.datasets.example import DatasetFiles, Example, shown
from nvlm_deploy.eval.datasets.options import with_options
from nvlm_deploy.eval.datasets.vqa import SHORT_ANSWER
from nvlm_deploy.eval.records import Record, read_json, read_json_lines, read_json_list


def read_docvqa(files: DatasetFiles) -> Sequence[Example]:
    """`val_v1.0_withQT.json` of DocVQA, or the same of InfographicVQA, whose images have local names."""
    data = Record.of(read_json(files.data), str(files.data))
    examples = []
    for i, item in enumerate(data.items("data")):
        record = Record.of(item, f"{files.data}: data[{i}]")
        key = "image_local_name" if "image_local_name" in record.raw else "image"
        references = tuple(record.texts("answers")) if "answers" in record.raw else ()
        text = f"{record.text('question')}\n{SHORT_ANSWER}"
        image = files.images / record.text(key)
        examples.append(Example(record.name("questionId"), shown(image, text), references))
    return examples


def read_chartqa(files: DatasetFiles) -> Sequence[Example]:
    """`test_human.json` or `test_augmented.json`: a list of `{imgname, query, label}`; images in `png/`."""
    return [
        Example(
            f"{files.data.stem}-{i}",
            shown(files.images / record.text("imgname"), f"{record.text('query')}\n{SHORT_ANSWER}"),
            (record.name("label"),),
        )
        for i, record in enumerate(read_json_list(files.data))
    ]


def read_ocrbench(files: DatasetFiles) -> Sequence[Example]:
    """`OCRBench.json`: `{dataset_name, type, question, answers, image_path}`; questions as they are."""
    examples = []
    for i, record in enumerate(read_json_list(files.data)):
        answers = record.get("answers")
        references = (answers,) if isinstance(answers, str) else tuple(record.texts("answers"))
        extra = {key: record.text(key) for key in ("dataset_name", "type")}
        image = files.images / record.text("image_path")
        examples.append(Example(str(i), shown(image, record.text("question")), references, extra))
    return examples


def read_ai2d(files: DatasetFiles) -> Sequence[Example]:
    """JSONL of `{image, question, answer, question_id}`, the question with its options in it.

    Images go by their last name, so that `files.images` chooses between the test's settings: letters in the
    place of labels, or beside them (no_mask).
    """
    return [
        Example(
            record.name("question_id"),
            shown(files.images / record.text("image").rsplit("/", 1)[-1], record.text("question")),
            (record.name("answer"),),
        )
        for record in read_json_lines(files.data)
    ]


def read_realworldqa(files: DatasetFiles) -> Sequence[Example]:
    """A list of `{image, question, question_type, answer}`, or `choices` and `correct_choice_index`."""
    examples = []
    for record in read_json_list(files.data):
        question = record.text("question")
        if record.raw.get("question_type") == "multi-choice":
            choices = record.texts("choices")
            index = record.integer("correct_choice_index")
            if not 0 <= index < len(choices):
                raise record.fail("correct_choice_index", f"is {index}, and there are {len(choices)} choices")
            text, reference = with_options(question, choices), chr(ord("A") + index)
        else:
            text, reference = f"{question}\n{SHORT_ANSWER}", record.name("answer")
        name = record.text("image")
        examples.append(Example(name, shown(files.images / name, text), (reference,)))
    return examples
