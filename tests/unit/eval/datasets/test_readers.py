"""Benchmarks in the formats that they are published in, small."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError
from nvlm_deploy.eval.datasets import FORMATS, DatasetFiles, Example, find_format, read_dataset
from nvlm_deploy.eval.metrics import METRICS, find_metric

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def read(kind: str, data: Path, annotations: Path | None = None) -> list[Example]:
    """Read, and check that the format's own metric takes what was read."""
    examples = list(read_dataset(find_format(kind), DatasetFiles(data, Path("images"), annotations)))
    for example in examples:
        metric = FORMATS[kind].metric
        if metric and example.references:
            find_metric(metric).check(example.references, example.extra)
    return examples


def save(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def save_lines(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_every_format_names_a_metric_that_exists() -> None:
    assert {each.metric for each in FORMATS.values()} - {None} <= set(METRICS)
    with pytest.raises(UsageError, match="no data format 'docvq'") as raised:
        find_format("docvq")
    assert raised.value.hint == "did you mean 'docvqa'?"


def test_plain(tmp_path: Path) -> None:
    data = save_lines(
        tmp_path / "d.jsonl",
        {"id": 7, "image": "a.png", "question": "What?", "references": ["x"], "type": "sign"},
        {"images": ["b.png", "c.png"], "question": "Which?", "references": ["y", "z"]},
        {"question": "Who?", "references": ["you"]},
    )
    first, second, third = read("jsonl", data)
    assert (first.id, first.references, first.extra) == ("7", ("x",), {"type": "sign"})
    assert first.parts == (Path("images/a.png"), "What?")
    assert first.messages() == [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": Path("images/a.png")},
                {"type": "text", "text": "What?"},
            ],
        }
    ]
    assert (second.id, second.parts) == ("2", (Path("images/b.png"), Path("images/c.png"), "Which?"))
    assert third.parts == ("Who?",)


def test_vqav2(tmp_path: Path) -> None:
    questions = save(
        tmp_path / "questions.json",
        {
            "data_subtype": "val2014",
            "questions": [{"image_id": 262148, "question": "Where?", "question_id": 262148000}],
        },
    )
    answers = [{"answer": "down", "answer_id": i} for i in range(1, 11)]
    annotation = {"question_id": 262148000, "answers": answers, "answer_type": "other"}
    annotations = save(tmp_path / "annotations.json", {"annotations": [annotation]})
    (example,) = read("vqav2", questions, annotations)
    assert example.parts == (Path("images/COCO_val2014_000000262148.jpg"), f"Where?\n{SHORT}")
    assert example.references == ("down",) * 10
    assert example.extra == {"answer_type": "other"}
    (secret,) = read("vqav2", questions)
    assert secret.references == ()
    with pytest.raises(NvlmError, match=r"questions\[0\]: question_id 262148000 has no annotation"):
        read("vqav2", questions, save(tmp_path / "none.json", {"annotations": []}))


def test_the_images_of_test_dev_are_those_of_test(tmp_path: Path) -> None:
    question = {"image_id": 1, "question": "?", "question_id": 10}
    data = save(tmp_path / "q.json", {"data_subtype": "test-dev2015", "questions": [question]})
    assert read("vqav2", data)[0].parts[0] == Path("images/COCO_test2015_000000000001.jpg")


def test_textvqa(tmp_path: Path) -> None:
    record = {
        "question_id": 34602,
        "image_id": "003a8ae2ef43b901",
        "question": "What?",
        "answers": ["a"] * 10,
    }
    (example,) = read("textvqa", save(tmp_path / "t.json", {"data": [record]}))
    assert (example.id, example.parts[0]) == ("34602", Path("images/003a8ae2ef43b901.jpg"))
    assert example.references == ("a",) * 10


def test_docvqa_and_infographicvqa(tmp_path: Path) -> None:
    record = {
        "questionId": 49153,
        "question": "When?",
        "image": "documents/pybv0228_81.png",
        "answers": ["1991"],
    }
    (page,) = read("docvqa", save(tmp_path / "d.json", {"data": [record]}))
    assert (page.id, page.parts) == ("49153", (Path("images/documents/pybv0228_81.png"), f"When?\n{SHORT}"))
    other = {"questionId": 1, "question": "How many?", "image_local_name": "20471.jpeg"}
    (poster,) = read("docvqa", save(tmp_path / "i.json", {"data": [other]}))
    assert (poster.parts[0], poster.references) == (Path("images/20471.jpeg"), ())


def test_chartqa(tmp_path: Path) -> None:
    records = [
        {"imgname": "1.png", "query": "How many?", "label": "14"},
        {"imgname": "1.png", "query": "?", "label": 3},
    ]
    first, second = read("chartqa", save(tmp_path / "test_human.json", records))
    assert (first.id, first.parts, first.references) == (
        "test_human-0",
        (Path("images/1.png"), f"How many?\n{SHORT}"),
        ("14",),
    )
    assert second.references == ("3",)


def test_ocrbench(tmp_path: Path) -> None:
    base = {"type": "Regular Text Recognition", "question": "what is written?", "image_path": "IIIT5K/1.png"}
    records = [
        {**base, "dataset_name": "IIIT5K", "answers": ["CENTRE"]},
        {**base, "dataset_name": "HME100k", "answers": "x ^ 2"},
    ]
    first, second = read("ocrbench", save(tmp_path / "o.json", records))
    assert first.parts == (Path("images/IIIT5K/1.png"), "what is written?")
    assert (first.references, second.references) == (("CENTRE",), ("x ^ 2",))
    assert second.extra == {"dataset_name": "HME100k", "type": "Regular Text Recognition"}


def test_ai2d_takes_images_by_their_last_name(tmp_path: Path) -> None:
    record = {
        "image": "data/ai2diagram/images/2964.png",
        "question": "Which?\nA. x\nB. y",
        "answer": "B",
        "question_id": 0,
    }
    (example,) = read("ai2d", save_lines(tmp_path / "a.jsonl", record))
    assert (example.parts, example.references) == ((Path("images/2964.png"), "Which?\nA. x\nB. y"), ("B",))


def test_realworldqa(tmp_path: Path) -> None:
    choice = {
        "image": "0.webp",
        "question": "Which?",
        "question_type": "multi-choice",
        "choices": ["left", "right"],
    }
    records = [
        {**choice, "correct_choice_index": 1},
        {"image": "1.webp", "question": "How many?", "question_type": "short-answer", "answer": 3},
    ]
    first, second = read("realworldqa", save(tmp_path / "r.json", records))
    assert first.parts[1] == f"Which?\nA. left\nB. right\n{LETTER}"
    assert (first.references, second.references) == (("B",), ("3",))
    assert second.parts[1] == f"How many?\n{SHORT}"
    with pytest.raises(NvlmError, match=r"\[0\]: correct_choice_index is 2"):
        read("realworldqa", save(tmp_path / "bad.json", [{**choice, "correct_choice_index": 2}]))


def test_mathvista(tmp_path: Path) -> None:
    choice = {
        "image": "images/1.jpg",
        "question": "Which?",
        "question_type": "multi_choice",
        "answer_type": "text",
        "choices": ["ten", "two"],
        "precision": None,
        "answer": "two",
    }
    free = {
        **choice,
        "choices": None,
        "question_type": "free_form",
        "answer_type": "float",
        "precision": 1.0,
        "answer": "1.2",
        "query": "Hint: Please give one decimal.\nQuestion: How long?",
    }
    first, second = read("mathvista", save(tmp_path / "m.json", {"1": choice, "2": free}))
    assert first.parts == (Path("images/images/1.jpg"), f"Which?\nA. ten\nB. two\n{LETTER}")
    assert first.extra["choices"] == ["ten", "two"]
    assert second.parts[1] == "Please give one decimal.\nQuestion: How long?"
    assert (second.extra["precision"], second.references) == (1, ("1.2",))
    score = find_metric("mathvista").score
    assert score("B", first.references, first.extra) == 1.0
    assert score("The answer is 1.21", second.references, second.extra) == 1.0
    with pytest.raises(NvlmError, match=r"m\.json: 1: precision must be a whole number"):
        read("mathvista", save(tmp_path / "m.json", {"1": {**free, "precision": 1.5}}))


def mmmu_record(**changes: Any) -> dict[str, Any]:
    return {
        "id": "validation_Art_Theory_3",
        "question": "<image 1> What is in <image 2>?",
        "options": "['a <image 1> cat', 'it\\'s a dog']",
        "answer": "B",
        "question_type": "multiple-choice",
        "image_1": "one.png",
        "image_2": "two.png",
        **changes,
    }


def test_mmmu(tmp_path: Path) -> None:
    data = save_lines(
        tmp_path / "m.jsonl",
        mmmu_record(),
        mmmu_record(id="test_Math_1", answer="?"),
        mmmu_record(
            id="dev_Math_2", question_type="open", options="[]", question="How?", answer="['1/2', '0.5']"
        ),
    )
    choice, secret, unmarked = read("mmmu", data)
    assert choice.parts == (
        Path("images/one.png"),
        " What is in ",
        Path("images/two.png"),
        "?\n\n(A) a ",
        Path("images/one.png"),
        f" cat\n(B) it's a dog\n\n{LETTER}",
    )
    assert choice.extra == {"options": ["a <image 1> cat", "it's a dog"], "subject": "Art_Theory"}
    assert secret.references == ()
    assert unmarked.parts == (Path("images/one.png"), f"How?\n\n{SHORT}")
    assert unmarked.references == ("1/2", "0.5")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": "['a'"}, r"m\.jsonl:1: options is no list"),
        ({"options": "__import__('os')"}, r"m\.jsonl:1: options is no list"),
        ({"options": [1, 2]}, r"m\.jsonl:1: options must be a list of texts"),
        ({"image_2": None}, r"m\.jsonl:1: image_2 is named in the question"),
        ({"answer": 5}, r"m\.jsonl:1: answer must be a list of texts"),
    ],
)
def test_bad_records_of_mmmu_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(NvlmError, match=message):
        read("mmmu", save_lines(tmp_path / "m.jsonl", mmmu_record(**changes)))


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    image = {"bytes": b"first image", "path": None}
    rows = [mmmu_record(question="<image 1>?", options="['a', 'b']", image_1=image, image_2=None)]
    (tmp_path / "Art").mkdir()
    parquet.write_table(
        pyarrow.Table.from_pylist(rows), tmp_path / "Art" / "validation-00000-of-00001.parquet"
    )
    (example,) = read("mmmu", tmp_path)
    assert example.parts[0] == b"first image"


def test_a_folder_without_parquet_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NvlmError, match=r"has no validation-\*\.parquet"):
        read("mmmu", tmp_path)


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnsuitableError, match="needs the package pyarrow"):
        read("mmmu", tmp_path / "x.parquet")


def test_gsm8k(tmp_path: Path) -> None:
    (example,) = read(
        "gsm8k", save_lines(tmp_path / "g.jsonl", {"question": "How many?", "answer": "5+1=6\n#### 6"})
    )
    assert (example.parts, example.references) == (("How many?",), ("5+1=6\n#### 6",))


def test_mmlu(tmp_path: Path) -> None:
    (tmp_path / "anatomy_test.csv").write_text('"Which one, of these?",w,"x\ny",z,v,B\n')
    (tmp_path / "zoology_test.csv").write_text("Who?,1,2,3,4,D\n")
    first, second = read("mmlu", tmp_path)
    assert first.id == "anatomy-1"
    assert first.parts == (f"Which one, of these?\nA. w\nB. x\ny\nC. z\nD. v\n{LETTER}",)
    assert first.extra == {"options": ["w", "x\ny", "z", "v"], "subject": "anatomy"}
    assert (second.extra["subject"], second.references) == ("zoology", ("D",))
    (tmp_path / "bad_test.csv").write_text("Who?,1,2\n")
    with pytest.raises(NvlmError, match=r"bad_test\.csv: row 1 has 3 columns, not 6"):
        read("mmlu", tmp_path)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("docvqa", "{", "cannot be read"),
        ("docvqa", "[]", "is a list, not a JSON object"),
        ("docvqa", '{"data": 5}', "data must be a list, not int"),
        ("docvqa", '{"data": [{"questionId": 1}]}', r"data\[0\] has no field 'question'"),
        ("docvqa", '{"data": []}', "has no records"),
        ("chartqa", "{}", "must hold a list"),
        ("chartqa", '[{"imgname": 5}]', r"\[0\]: imgname must be a text, not 5"),
        ("textvqa", '{"data": [{"image_id": "x", "answers": []}]}', r"data\[0\]: answers must be a list"),
        ("jsonl", '{"question": 1}', r":1: question must be a text"),
        ("jsonl", "", "has no records"),
        (
            "jsonl",
            '{"id": 1, "question": "a"}\n{"id": 1, "question": "b"}',
            "has the id '1' twice",
        ),
        ("vqav2", '{"data_subtype": "val2014", "questions": [{"question_id": true}]}', "question_id must be"),
    ],
)
def test_bad_files_and_records_are_named(kind: str, content: str, message: str, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(content)
    with pytest.raises(NvlmError, match=message) as raised:
        read(kind, data)
    assert "data.json" in raised.value.message


def test_the_digest_covers_questions_references_and_images(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"1")
    base = Example("1", (image, "What?"), ("x",), {"type": "t"})
    same = Example("1", (tmp_path / "a.png", "What?"), ("x",), {"type": "t"})
    assert base.digest() == same.digest()
    others = [
        Example("2", (image, "What?"), ("x",), {"type": "t"}),
        Example("1", (image, "Who?"), ("x",), {"type": "t"}),
        Example("1", ("What?", image), ("x",), {"type": "t"}),
        Example("1", (image, "What?"), ("y",), {"type": "t"}),
        Example("1", (image, "What?"), ("x",), {}),
        Example("1", (b"1", "What?"), ("x",), {"type": "t"}),
    ]
    digests = {example.digest() for example in [base, *others]}
    image.write_bytes(b"22")
    assert len(digests | {base.digest()}) == len(others) + 2
