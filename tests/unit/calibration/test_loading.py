"""Drawing, re-reading, counting and warning."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvlm_deploy.calibration import CalibrationSamples, TokenClass, load_samples
from nvlm_deploy.config.calibration import read_calibration_set
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError, UnsuitableError
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from nvlm_deploy.synthetic.documents import document

from .conftest import Load

DOCUMENTS = {"kind": "documents", "split": "train", "with_images": True}


def labels(samples: CalibrationSamples) -> list[str]:
    return [sample.label for sample in samples]


def test_a_set_can_be_read_again(load: Load) -> None:
    samples = load(DOCUMENTS)
    first, again = list(samples), list(samples)
    assert [sample.digest() for sample in first] == [sample.digest() for sample in again]
    assert samples[2].digest() == first[2].digest()
    assert len(samples) == len(first) == 4


def test_the_same_seed_gives_the_same_set_and_another_one_another(load: Load) -> None:
    one, same, other = load(DOCUMENTS), load(DOCUMENTS), load(DOCUMENTS, seed=1)
    assert labels(one) == labels(same)
    assert one.summary.digest == same.summary.digest
    assert set(labels(one)).isdisjoint(labels(other))
    assert one.summary.digest != other.summary.digest


def test_the_digest_depends_on_the_order(load: Load, pictures: Path) -> None:
    source = {"kind": "folder", "path": "pictures", "prompt": "What?"}
    one = load(source, count=10).summary
    for new, old in (("a", "0"), ("0", "1"), ("1", "a")):
        (pictures / f"{old}.png").rename(pictures / f"{new}.png")
    other = load(source, count=10).summary
    assert one.tokens == other.tokens
    assert one.digest != other.digest


def test_the_summary_counts_what_the_samples_hold(load: Load) -> None:
    samples = load(DOCUMENTS, count=20)
    summary, read = samples.summary, list(samples)
    assert (summary.count, summary.requested, summary.seed, summary.licence) == (20, 20, 0, "CC0-1.0")
    assert summary.images == 20
    assert summary.tiles == sum(len(sample.tiles) for sample in read)
    assert sum(summary.tokens.values()) == sum(len(sample) for sample in read)
    visual = summary.tokens["visual"] + summary.tokens["thumbnail"]
    assert visual == sum(len(sample.visual_positions) for sample in read)
    assert summary.tokens["tag"] == sum((s.token_classes == TokenClass.TAG).sum() for s in read)
    assert summary.warnings == ()
    assert json.loads(json.dumps(summary.to_dict()))["source"]["kind"] == "documents"
    assert summary.to_dict()["class_weights"] == {"text": 1, "tag": 1, "visual": 1, "thumbnail": 1}


def test_documents_are_of_the_train_split(load: Load, tokenizer: Tokenizer, config: NvlmConfig) -> None:
    for sample in load(DOCUMENTS):
        index = int(sample.label.split()[1])
        page = document("train", index, config.tile_size)
        text = tokenizer.decode(sample.input_ids)
        assert text.endswith(page.transcript)
        asked = sum(exchange.question in text for exchange in page.exchanges)
        assert asked == min(4, len(page.exchanges))


def test_documents_as_text_ask_the_same(load: Load, tokenizer: Tokenizer, config: NvlmConfig) -> None:
    with_images, as_text = load(DOCUMENTS), load({**DOCUMENTS, "with_images": False})
    assert labels(with_images) == labels(as_text)
    assert as_text.summary.images == 0
    for seen, told in zip(with_images, as_text, strict=True):
        seen_text = tokenizer.decode(seen.input_ids[int(seen.visual_positions[-1]) + 1 :])
        question = seen_text.removeprefix("</Image>\n")
        told_text = tokenizer.decode(told.input_ids)
        page = document("train", int(seen.label.split()[1]), config.tile_size)
        assert told_text.endswith(f"{page.transcript}\n{question}")


def test_kinds_of_documents_can_be_chosen(load: Load) -> None:
    chosen = labels(load({**DOCUMENTS, "kinds": ["chart", "lines"]}, count=8))
    assert {label.split()[2] for label in chosen} == {"(chart)", "(lines)"}


def test_a_folder_gives_every_image_in_order_with_the_prompts_in_turn(
    load: Load, pictures: Path, tokenizer: Tokenizer
) -> None:
    samples = load({"kind": "folder", "path": "pictures", "prompt": ["What?", "Where?"]}, count=99)
    files = [Path(label).relative_to(pictures).as_posix() for label in labels(samples)]
    assert files == [f"{n}.png" for n in (0, 1, 3, 4, 5, 6, 7, 8, 9)] + ["below/2.png"]
    texts = [tokenizer.decode(sample.input_ids) for sample in samples]
    assert ["What?" in text for text in texts] == [True, False] * 5
    assert ["Where?" in text for text in texts] == [False, True] * 5


def test_of_a_larger_folder_the_seed_draws(load: Load, pictures: Path) -> None:
    source = {"kind": "folder", "path": str(pictures), "prompt": "What?"}
    drawn, again = load(source, seed=1), load(source, seed=1)
    assert labels(drawn) == labels(again)
    assert len(set(labels(drawn))) == 4
    assert labels(drawn) != labels(load(source, seed=2))


def test_the_example_s_samples_are_a_set(load: Load, example: Path, builder: PromptBuilder) -> None:
    file = example / "samples" / "samples.jsonl"
    samples = load({"kind": "jsonl", "path": str(file)}, count=24)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert labels(samples) == [f"{file}:{number}" for number in range(1, 25)]
    for sample, row in zip(samples, rows, strict=True):
        prompt = builder.build(row["question"], sample.tiles_per_image).input_ids
        assert np.array_equal(sample.input_ids[: len(prompt)], prompt)


def write_texts(folder: Path, *sizes: int) -> dict[str, str]:
    lines = [json.dumps({"question": "What? " * size, "answer": "fog " * 40}) for size in sizes]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    return {"kind": "jsonl", "path": "texts.jsonl"}


def test_long_answers_are_cut_and_long_prompts_replaced(load: Load, tmp_path: Path) -> None:
    source = write_texts(tmp_path, *([1, 200] * 5))
    samples = load(source, max_tokens=50)
    summary = samples.summary
    assert summary.count == summary.shortened == 4
    assert summary.left_out > 0
    assert [len(sample) for sample in samples] == [50] * 4
    # Odd lines are the short ones.
    assert all(int(label.rpartition(":")[2]) % 2 for label in labels(samples))


def test_the_model_s_own_limit_holds(load: Load, tmp_path: Path, config: NvlmConfig) -> None:
    samples = load(write_texts(tmp_path, 1, 3000), max_tokens=100_000)
    limit = config.language.max_position_embeddings
    assert (samples.summary.max_tokens, samples.summary.left_out, len(samples)) == (limit, 1, 1)


def test_nothing_but_long_prompts_is_an_error(load: Load, tmp_path: Path) -> None:
    source = write_texts(tmp_path, 200, 100)
    with pytest.raises(NvlmError, match="'mine' is empty: the shortest of 2 prompts has") as caught:
        load(source, max_tokens=50)
    assert (caught.value.hint or "").startswith("raise max_tokens")
    with pytest.raises(NvlmError, match="the limit is 2,048") as caught:
        load(write_texts(tmp_path, 3000), max_tokens=100_000)
    assert (caught.value.hint or "").startswith("the model takes no more than 2,048 tokens")


def test_a_set_without_images_warns(load: Load) -> None:
    warnings = load({**DOCUMENTS, "with_images": False}, count=16).summary.warnings
    assert len(warnings) == 1
    assert "the vision layers cannot be calibrated" in warnings[0]


def test_a_set_without_thumbnails_or_answers_warns(load: Load, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    for number in range(16):
        Image.new("RGB", (40, 40)).save(tmp_path / "small" / f"{number}.png")
    warnings = load({"kind": "folder", "path": "small", "prompt": "What?"}, count=16).summary.warnings
    assert [warning.partition(":")[0].partition(";")[0] for warning in warnings] == [
        "the set has no token of the class thumbnail",
        "no sample has an answer",
    ]


def test_a_set_without_text_warns(load: Load, tmp_path: Path) -> None:
    Image.new("RGB", (224, 112)).save(tmp_path / "one.png")
    lines = [json.dumps({"image": "one.png", "question": " "})] * 16
    (tmp_path / "silent.jsonl").write_text("\n".join(lines))
    silent = load({"kind": "jsonl", "path": "silent.jsonl"}, count=16).summary.warnings
    assert len(silent) == 1
    assert silent[0].startswith("the set has no text: all that the language layers see of it")
    # One answer among them is text.
    lines[3] = json.dumps({"image": "one.png", "question": " ", "answer": "fog"})
    (tmp_path / "silent.jsonl").write_text("\n".join(lines))
    assert load({"kind": "jsonl", "path": "silent.jsonl"}, count=16).summary.warnings == ()


@pytest.mark.parametrize(
    ("weights", "part"),
    [
        ({"visual": 0.0, "thumbnail": 0.0}, "vision"),
        ({"visual": 0.0, "thumbnail": 0.0, "text": 0.0, "tag": 0.0001}, "vision"),
    ],
)
def test_weights_that_leave_a_part_nothing_warn(load: Load, weights: dict[str, float], part: str) -> None:
    (warning,) = load(DOCUMENTS, count=16, class_weights=weights).summary.warnings
    assert warning.startswith(f"no token of the {part} layers has a weight")
    assert warning.endswith("to visual or thumbnail")


def test_weights_for_what_a_text_only_set_lacks_warn(load: Load) -> None:
    weights = {"text": 0.0, "tag": 0.0}
    warnings = load({**DOCUMENTS, "with_images": False}, count=16, class_weights=weights).summary.warnings
    assert warnings[1].startswith("no token of the language layers has a weight")
    assert warnings[1].endswith("above 0 to text")


def test_too_few_samples_warn(load: Load, tmp_path: Path) -> None:
    warnings = load(write_texts(tmp_path, 1, 1, 1), count=20).summary.warnings
    assert "few samples (3)" in warnings[1]
    assert warnings[2] == "the set asks for 20 samples, and its source gives 3"


def test_an_image_that_changes_later_is_an_error(load: Load, pictures: Path) -> None:
    samples = load({"kind": "folder", "path": "pictures", "prompt": "What?"}, count=10)
    Image.new("RGB", (224, 112), (1, 2, 3)).save(pictures / "0.png")
    with pytest.raises(NvlmError, match=r"0\.png has changed since the calibration set was loaded"):
        list(samples)


def test_progress_counts_samples(config: NvlmConfig, tokenizer: Tokenizer) -> None:
    spec, base_dir = read_calibration_set("documents", ["count=3"])
    told: list[tuple[str, int, int]] = []
    load_samples(spec, config, tokenizer, base_dir, lambda *step: told.append(step))
    assert told == [("calibration set", done, 3) for done in (1, 2, 3)]


def test_a_missing_package_is_said_with_the_set_s_name(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    source = {"kind": "huggingface", "dataset": "a/b", "split": "train", "revision": "1"}
    columns = {"image_column": "image", "question_column": "question", "answer_column": None}
    with pytest.raises(UnsuitableError, match="'mine': reading a/b needs the package datasets") as caught:
        load({**source, **columns})
    assert caught.value.hint == "pip install 'nvlm-deploy[calibration]', or pip install 'datasets>=3'"
    assert caught.value.exit_code == 3
