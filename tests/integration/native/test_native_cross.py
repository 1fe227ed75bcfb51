"""NVLM-X and NVLM-H natively: tokens, cache and errors are those of the Python engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nvlm_deploy import Engine
from nvlm_deploy.config.manifest import MANIFEST_NAME, sealed
from nvlm_deploy.errors import NvlmError

from .answers import Engines, check_same, check_same_refusal
from .conftest import NativeEngine, Variant
from .pictures import random_pixels

OpenNatively = Callable[[Path], NativeEngine]
CrossBundle = Callable[[Variant, str], Path]
# Of 7, 1, 3 and 6 tiles, thumbnails included; of the second NVLM-H has nothing in cross-attention.
SIZES = ((170, 115), (40, 41), (130, 60), (58, 300))
TILES = (7, 1, 3, 6)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(11)
    paths = [folder / f"{number}.png" for number in range(len(SIZES))]
    for path, (width, height) in zip(paths, SIZES, strict=True):
        Image.fromarray(random_pixels(random, width, height)).save(path)
    return list(map(str, paths))


@pytest.fixture(scope="module")
def open_both(cross_bundle: CrossBundle, native_engine: OpenNatively) -> Callable[[Variant, str], Engines]:
    def both(variant: Variant, recipe: str) -> Engines:
        bundle = cross_bundle(variant, recipe)
        return Engine.open(bundle, threads=1), native_engine(bundle)

    return both


def requests(images: list[str]) -> list[dict[str, Any]]:
    """Prompts of every kind: no image, one of many tiles or of a single one, several, chats, long ones."""
    parts = [{"type": "text", "text": "A "}, {"type": "image"}, {"type": "text", "text": "\nand what?"}]
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts},
            {"role": "assistant", "content": "Héllo"}, {"role": "user", "content": "<tile_1>?"}]  # fmt: skip
    return [
        {"prompt": "No image, only text."},
        {"prompt": "What is it?", "images": images[:1]},
        {"prompt": "What is it?", "images": images[1:2]},
        {"prompt": "a <image> b <image> c", "images": [images[2], images[0]]},
        {"prompt": "a <image> b <image> c <image>", "images": [images[1], images[3], images[1]]},
        {"messages": chat, "images": images[2:3]},
        {"prompt": "long " * 60 + "<image>" + " and longer" * 8, "images": images[2:3]},
    ]


@pytest.mark.parametrize("recipe", ["fp32", "int8", "int4-rtn"])
@pytest.mark.parametrize("variant", ["X", "H"])
def test_the_same_answers(
    variant: Variant, recipe: str, images: list[str], open_both: Callable[[Variant, str], Engines]
) -> None:
    engines = open_both(variant, recipe)
    answers = set()
    for number, line in enumerate(requests(images)):
        check_same(engines, **line, max_new_tokens=12, top_logits=5)
        sampling = {"temperature": 0.6 + number / 5, "top_k": number % 3 * 20, "top_p": 1 - number % 4 / 10}
        for seed in (0, 1 << 40):
            found = check_same(engines, **line, **sampling, seed=seed + number, max_new_tokens=12)
            answers.add(tuple(found["output_ids"]))
    assert len(answers) > 10
    seen = check_same(engines, **requests(images)[4], max_new_tokens=1)["images"]
    assert [image["tiles"] for image in seen] == [TILES[1], TILES[3], TILES[1]]


@pytest.mark.parametrize("variant", ["X", "H"])
def test_every_length_around_a_piece(
    variant: Variant, images: list[str], open_both: Callable[[Variant, str], Engines]
) -> None:
    """Prompts are computed in pieces of 256 tokens; the last may be a single one."""
    engines = open_both(variant, "fp32")
    python = engines[0]
    start = len(python.preprocess("<image>", images[2:3])[0])
    for length in (255, 256, 257, 258):
        line = {"prompt": "<image>" + "y" * (length - start), "images": images[2:3]}
        assert len(check_same(engines, **line, max_new_tokens=6)["input_ids"]) == length


@pytest.mark.parametrize("variant", ["X", "H"])
def test_an_image_is_encoded_once(
    variant: Variant, images: list[str], cross_bundle: CrossBundle, native_build: Path, native_library: Path
) -> None:
    bundle = cross_bundle(variant, "int8")
    python, native = Engine.open(bundle, threads=1), NativeEngine(native_build, bundle)
    prompt = "a <image> b <image>"
    lines: list[dict[str, Any]] = [
        {"prompt": prompt, "images": order} for order in (images[:2], images[1::-1])
    ]
    answers = [check_same((python, native), **line, max_new_tokens=6)["output_ids"] for line in lines * 2]
    facts = native.ask(verb="cache")
    native.close()
    assert answers[:2] == answers[2:]
    assert (facts["hits"], facts["misses"], facts["entries"]) == (6, 2, 2)
    _, tiled = python.preprocess(prompt, images[:2])
    assert facts["bytes"] == sum(python.encoder.encode(image).nbytes for image in tiled)


def test_many_threads_and_cancelling(images: list[str], open_both: Callable[[Variant, str], Engines]) -> None:
    native = open_both("H", "int8")[1]
    lines = [{**line, "max_new_tokens": 4, "temperature": 0.7} for line in requests(images)]
    assert native.ask(verb="parallel", threads=4, repeats=20, requests=lines) == {"wrong": 0}
    line = {**lines[3], "max_new_tokens": 20, "temperature": 9.0}
    before = native.ask(**line)
    assert len(before["pieces"]) > 3
    for wanted in (0, 2):
        told = native.ask(verb="cancel", **line, pieces=wanted)
        assert told == {"status": 130, "pieces": wanted}
    assert native.ask(**line)["output_ids"] == before["output_ids"]


@pytest.mark.parametrize("variant", ["X", "H"])
def test_requests_are_refused_in_the_same_words(
    variant: Variant, images: list[str], open_both: Callable[[Variant, str], Engines]
) -> None:
    engines = open_both(variant, "int8")
    for line, part in (
        ({"prompt": "a <image> b"}, "image"),
        ({"prompt": "<Image></Image>", "images": images[:1]}, "is written without tags"),
        ({"prompt": "<Image><tile_1><tile_3></Image>", "images": images[2:3]}, "its tiles' tags are"),
        ({"prompt": "x " * 3000, "images": images[:1]}, "the engine's context"),
    ):
        assert part in check_same_refusal(engines, **line)


def test_written_images_are_images(images: list[str], open_both: Callable[[Variant, str], Engines]) -> None:
    tags = "<tile_1><tile_2><tile_global_thumbnail>"
    both: tuple[tuple[Variant, str], ...] = (("X", tags), ("H", "<tile_global_thumbnail>"))
    for variant, own in both:
        engines, written = open_both(variant, "int8"), f"<Image>{own}</Image>"
        written_out, marked = (
            check_same(engines, prompt=f"See {image}?", images=images[2:3], max_new_tokens=6)["output_ids"]
            for image in (written, "<image>")
        )
        assert written_out == marked


Cli = Callable[..., CompletedProcess[str]]


def python_refusal(bundle: Path) -> tuple[int, str]:
    with pytest.raises(NvlmError) as refused:
        Engine.open(bundle, threads=1)
    return refused.value.exit_code, refused.value.message


def test_bundles_that_do_not_fit(cross_bundle: CrossBundle, native_cli: Cli, tmp_path: Path) -> None:
    """Fields of the graph of tiles, each behind a seal that holds."""
    bundle = Path(shutil.copytree(cross_bundle("X", "int8"), tmp_path / "bundle"))
    original = json.loads((bundle / MANIFEST_NAME).read_text())
    del original["manifest_copy"], original["manifest_sha256"]
    tiles = original["llm"]["tiles"]
    for changed in (
        {key: value for key, value in original["llm"].items() if key != "tiles"},
        {**original["llm"], "tiles": {**tiles, "inputs": {}}},
        {**original["llm"], "tiles": {**tiles, "outputs": {**tiles["outputs"], "tiles": {"dtype": "int32"}}}},
        {**original["llm"], "tiles": {**tiles, "model": "llm/decoder.onnx"}},
    ):
        (bundle / MANIFEST_NAME).write_text(sealed({**original, "llm": changed}))
        code, message = python_refusal(bundle)
        done = native_cli(bundle, "--prompt", "x")
        assert done.returncode == code == 4
        # JSON's separators differ.
        told = done.stderr.partition("\n")[0].removeprefix("error: ").replace(" ", "")
        assert told[:160] == message.replace(" ", "")[:160]


def test_a_damaged_graph_of_tiles(cross_bundle: CrossBundle, native_cli: Cli, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(cross_bundle("H", "int8"), tmp_path / "bundle"))
    model = bundle / "llm" / "tiles.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    code, message = python_refusal(bundle)
    done = native_cli(bundle, "--prompt", "x")
    assert done.returncode == code == 4
    assert done.stderr.startswith(f"error: {message}\n")
    model.unlink()
    assert f"{model} is missing from the bundle" in native_cli(bundle, "--prompt", "x").stderr
