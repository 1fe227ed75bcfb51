"""The native engine answers as the Python engine: ids, tokens, text, errors; also from many threads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy import Engine
from nvlm_deploy.cli.main import run

from .answers import check_same, check_same_refusal
from .conftest import NativeEngine

OpenNatively = Callable[[Path], NativeEngine]
TIMES = ["tile", "tokenize", "vision", "prefill", "first_token", "decode", "per_token", "total"]


@pytest.fixture(scope="module")
def samples(repository: Path) -> list[dict[str, Any]]:
    folder = repository / "examples" / "nvlm-d-tiny" / "samples"
    lines = (folder / "samples.jsonl").read_text().splitlines()
    read = [json.loads(line) for line in lines]
    return [{"prompt": sample["question"], "images": [str(folder / sample["image"])]} for sample in read]


@pytest.fixture(scope="module")
def example(example_bundle: Path, native_engine: OpenNatively) -> tuple[Engine, NativeEngine]:
    """The example's engine in Python and natively."""
    return Engine.open(example_bundle, threads=1), native_engine(example_bundle)


def test_golden_images(golden_dir: Path, native_engine: OpenNatively, tmp_path: Path) -> None:
    bundle = tmp_path / "fp32"
    names = ["--recipe", "fp32", "--target", "cpu-x86", "--no-verify"]
    assert run(["engine", str(golden_dir), *names, "-o", str(bundle)]) == 0
    engine = native_engine(bundle)
    for sample in json.loads((golden_dir / "expected.json").read_text())["samples"]:
        image = str(golden_dir / "images" / sample["image"])
        answer = engine.ask(prompt=sample["question"], images=[image], max_new_tokens=16)
        assert answer["images"][0]["crc32"] == sample["tile_crc32"]
        assert answer["input_ids"] == sample["input_ids"]
        assert answer["output_ids"] == sample["greedy16"]


def test_answers_of_the_example(example: tuple[Engine, NativeEngine], samples: list[dict[str, Any]]) -> None:
    for sample in samples[:12]:
        check_same(example, **sample, max_new_tokens=40, top_logits=5)


def test_sampling_gives_pythons_tokens(
    example: tuple[Engine, NativeEngine], samples: list[dict[str, Any]]
) -> None:
    answers = set()
    for seed in range(100):
        sampling = {"temperature": 0.5 + seed % 7 / 2, "top_k": seed % 3 * 20, "top_p": 1 - seed % 4 / 10}
        sample = samples[seed % 4]
        found = check_same(example, **sample, **sampling, seed=seed, max_new_tokens=8)
        answers.add(tuple(found["output_ids"]))
    assert len(answers) > 20


def test_prompts_of_every_kind(example: tuple[Engine, NativeEngine], samples: list[dict[str, Any]]) -> None:
    first, second = samples[0]["images"][0], samples[1]["images"][0]
    parts = [{"type": "text", "text": "A "}, {"type": "image"}, {"type": "text", "text": "\nand what?"}]
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|>"},
            {"role": "assistant", "content": "Héllo 👋"}, {"role": "user", "content": parts}]  # fmt: skip
    for line in (
        {"prompt": "No image, 日本語"},
        {"prompt": "a <image> b <image> c", "images": [first, second]},
        {"prompt": "two", "images": [first, second]},
        {"messages": chat, "images": [first]},
    ):
        check_same(example, **line, max_new_tokens=12)


def test_stop_strings_are_not_in_the_answer(
    example: tuple[Engine, NativeEngine], samples: list[dict[str, Any]]
) -> None:
    whole = check_same(example, **samples[0], max_new_tokens=40)["text"]
    assert len(whole) > 2
    for stop in ([whole[1]], [whole[1:3], "never"], [whole + "no"], [whole[-1]]):
        check_same(example, **samples[0], max_new_tokens=40, stop=stop)


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "x", "images": ["missing.png"]},
        {"prompt": "a <image> b"},
        {"prompt": "x " * 3000},
        {"prompt": "x", "temperature": -1.0},
        {"prompt": "x", "top_p": 1.5},
        {"prompt": "x", "top_k": -2},
        {"prompt": "x", "stop": [""]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
    ],
)
def test_bad_requests_are_refused_in_the_same_words(
    example: tuple[Engine, NativeEngine], line: dict[str, Any]
) -> None:
    check_same_refusal(example, **line)


def test_eight_threads_on_one_engine(
    example: tuple[Engine, NativeEngine], samples: list[dict[str, Any]]
) -> None:
    requests = [
        {**sample, "max_new_tokens": 4, "temperature": 0.7, "seed": i} for i, sample in enumerate(samples[:5])
    ]
    answer = example[1].ask(verb="parallel", threads=8, repeats=50, requests=requests)
    assert answer == {"wrong": 0}


def test_a_request_can_be_cancelled(
    example: tuple[Engine, NativeEngine], samples: list[dict[str, Any]]
) -> None:
    native = example[1]
    # Hot enough never to end by itself.
    request = {**samples[2], "max_new_tokens": 20, "temperature": 9.0, "seed": 3}
    before = native.ask(**request)
    assert len(before["pieces"]) > 4
    for wanted in (0, 1, 3):
        told = native.ask(verb="cancel", **request, pieces=wanted)
        assert told == {"status": 130, "pieces": wanted}
    assert native.ask(**request)["output_ids"] == before["output_ids"]


def test_an_image_is_encoded_once(example_bundle: Path, native_build: Path, native_library: Path,
                                  samples: list[dict[str, Any]]) -> None:  # fmt: skip
    native = NativeEngine(native_build, example_bundle)
    answers = [native.ask(**samples[0], max_new_tokens=6)["output_ids"] for _ in range(3)]
    facts = native.ask(verb="cache")
    native.close()
    assert answers[0] == answers[1] == answers[2]
    assert (facts["hits"], facts["misses"], facts["entries"]) == (2, 1, 1)
    assert facts["bytes"] > 0


def test_tokens_and_back(example: tuple[Engine, NativeEngine]) -> None:
    python, native = example
    text = "Grüße, 日本語 👋🏽 <|im_start|>x"
    found = native.ask(verb="tokenize", text=text)
    assert found["ids"] == python.bundle.tokenizer.encode(text)
    assert found["text"] == python.bundle.tokenizer.decode(found["ids"])


def test_bundles_that_need_more_than_there_is(native_cli: Callable[..., Any], example_bundle: Path) -> None:
    for arguments, code, text in (
        ([example_bundle, "--device", "cuda"], 3, "on the CPU, not on 'cuda'"),
        ([example_bundle, "--require-verified"], 4, "has not been verified"),
        ([example_bundle, "--library", "/nowhere/libonnxruntime.so"], 3, "ONNX Runtime cannot be opened"),
        (["/nowhere"], 1, "/nowhere is no engine bundle"),
    ):
        done = native_cli(*arguments, "--prompt", "x")
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert done.stderr.startswith("error: ")
        assert text in done.stderr
        assert "\nhint: " in done.stderr
