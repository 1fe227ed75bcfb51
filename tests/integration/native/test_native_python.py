"""`Engine.open(bundle, runtime="native")`: the interface, answers and errors of the Python engine."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nvlm_deploy import Engine
from nvlm_deploy.cli.main import run
from nvlm_deploy.errors import CancelledError, NvlmError, UnsuitableError, UsageError
from nvlm_deploy.runtime import Request
from nvlm_deploy.runtime.sampling import Sampling

from .conftest import Variant

Engines = tuple[Engine, Engine]
HOT: dict[str, Any] = {"temperature": 9.0, "seed": 3}  # never ends by itself


@pytest.fixture(scope="module")
def named_library(native_library: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NVLM_LIBRARY", str(native_library))
        yield native_library


@pytest.fixture(scope="module")
def engines(named_library: Path, example_bundle: Path) -> Engines:
    """The example's engine in Python and natively."""
    return (
        Engine.open(example_bundle, threads=1),
        Engine.open(example_bundle, threads=1, runtime="native"),
    )


@pytest.fixture(scope="module")
def samples(repository: Path) -> list[tuple[str, Path]]:
    folder = repository / "examples" / "nvlm-d-tiny" / "samples"
    lines = map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
    return [(sample["question"], folder / sample["image"]) for sample in lines]


def check_same(engines: Engines, prompt: Any, images: Any, **settings: Any) -> None:
    expected, found = (engine.generate(prompt, images, **settings) for engine in engines)
    assert list(found.timings_ms) == list(expected.timings_ms)
    assert np.allclose(expected.first_token_top, found.first_token_top, rtol=1e-5)
    for image, native in zip(expected.images, found.images, strict=True):
        assert len(native) == len(image)
        np.testing.assert_array_equal(native.tiles, image.tiles)
    left, right = expected.to_dict(), found.to_dict()
    for result in (left, right):
        del result["timings_ms"], result["first_token_top"]
    assert right == left


@pytest.mark.parametrize("variant", ["X", "H"])
def test_cross_attention(
    named_library: Path,
    cross_bundle: Callable[[Variant, str], Path],
    samples: list[tuple[str, Path]],
    variant: Variant,
) -> None:
    bundle = cross_bundle(variant, "int8")
    both = Engine.open(bundle, threads=1), Engine.open(bundle, threads=1, runtime="native")
    for images in ([], [samples[0][1]], [samples[0][1], samples[1][1]]):
        check_same(both, "What is it?", images, max_new_tokens=8, top_logits=3)


def test_images_of_every_kind(engines: Engines, samples: list[tuple[str, Path]]) -> None:
    question, path = samples[0]
    image = Image.open(path).convert("RGB")
    webp = io.BytesIO()
    image.save(webp, format="WEBP", lossless=True)
    pixels = np.asarray(image)
    for source in (path, str(path), path.read_bytes(), webp.getvalue(), image.convert("L"), pixels[:, ::-1]):
        check_same(engines, question, [source], max_new_tokens=4, top_logits=3)
    part = {"type": "image", "image": path}
    chat = [{"role": "user", "content": [part, {"type": "text", "text": "Grüße\0?"}, {"type": "image"}]}]
    check_same(engines, chat, [image], max_new_tokens=4, stop=["a"])


def test_a_batch_answers_as_each_alone(engines: Engines, samples: list[tuple[str, Path]]) -> None:
    python, native = engines
    requests = [
        Request(question, [image], 6, sampling=Sampling(0.8, 40, 0.9, seed=seed))
        for seed, (question, image) in enumerate(samples[:3] * 4)
    ]
    found = native.generate_batch(requests)
    for request, result in zip(requests, found, strict=True):
        (alone,) = native.generate_batch([request])
        assert result.output_ids == alone.output_ids
    expected = python.generate_batch(requests[:3])
    assert [result.output_ids for result in found[:3]] == [result.output_ids for result in expected]
    assert native.generate_batch([]) == []
    bad = Request("x", ["missing.png"])
    with pytest.raises(NvlmError, match=r"missing\.png does not exist"):
        native.generate_batch([*requests[:2], bad])


def test_streams_end_when_they_are_told_to(engines: Engines, samples: list[tuple[str, Path]]) -> None:
    question, image = samples[0]
    for engine in engines:
        whole = engine.generate(question, [image], max_new_tokens=12)
        stream = engine.generate(question, [image], max_new_tokens=12, stream=True)
        with pytest.raises(UsageError, match="not been read to its end"):
            _ = stream.result
        pieces = list(stream)
        assert "".join(pieces) == stream.result.text == whole.text
        assert len(pieces) > 1
        cancelled = engine.generate(question, [image], stream=True, **HOT)
        assert next(cancelled)
        cancelled.cancel()
        with pytest.raises(CancelledError, match="was cancelled"):
            list(cancelled)
        early = engine.generate(question, [image], stream=True, **HOT)
        early.cancel()
        with pytest.raises(CancelledError):
            next(early)


def test_eight_threads_on_one_engine(engines: Engines, samples: list[tuple[str, Path]]) -> None:
    native = engines[1]

    def answer(number: int) -> tuple[int, ...]:
        question, image = samples[number % 3]
        return native.generate(question, [image], max_new_tokens=3, temperature=0.9, seed=number).output_ids

    expected = [answer(number) for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, range(16))) == expected


def test_an_image_is_encoded_before_it_is_asked_about(
    named_library: Path, example_bundle: Path, samples: list[tuple[str, Path]]
) -> None:
    question, image = samples[1]
    for runtime in ("python", "native"):
        engine = Engine.open(example_bundle, threads=1, runtime=runtime)
        engine.prefetch(image)
        engine.generate(question, [image], max_new_tokens=1)
        assert (engine.image_cache.hits, engine.image_cache.misses) == (1, 1)
        uncached = Engine.open(example_bundle, threads=1, runtime=runtime, image_cache_bytes=0)
        uncached.prefetch(image)
        uncached.generate(question, [image], max_new_tokens=1)
        assert uncached.image_cache.hits == 0


@pytest.mark.parametrize(
    ("prompt", "images", "settings"),
    [
        ("x", ["missing.png"], {}),
        ("x", [b"GIF89a and more"], {}),
        ("x", [7], {}),
        ("a <image> b", [], {}),
        ("x " * 3000, [], {}),
        ("x", [], {"temperature": -1.0}),
        ("x", [], {"max_new_tokens": 0}),
        ([{"role": "user", "content": [{"type": "image"}]}], [], {}),
        ([{"role": "assistant", "content": "x"}], [], {}),
    ],
)
def test_errors_are_the_same(engines: Engines, prompt: Any, images: Any, settings: Any) -> None:
    told = []
    for engine in engines:
        with pytest.raises(NvlmError) as caught:
            engine.generate(prompt, images, **settings)
        told.append((type(caught.value), caught.value.message, caught.value.hint))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("prompt", "settings", "text"),
    [
        ("a\0b", {}, "the prompt has a zero byte"),
        ("\ud800", {}, "the prompt is no Unicode text"),
        ("x", {"stop": ["\0"]}, "stop has a zero byte"),
        ("x", {"seed": 2**64}, "seed is"),
    ],
)
def test_what_c_cannot_take(engines: Engines, prompt: str, settings: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        engines[1].generate(prompt, **settings)


def test_engines_that_cannot_be_opened(named_library: Path, example_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsuitableError, match="not on 'cuda'"):
        Engine.open(example_bundle, device="cuda", runtime="native")
    told = []
    for runtime in ("python", "native"):
        with pytest.raises(NvlmError, match="is no engine bundle") as caught:
            Engine.open(tmp_path, runtime=runtime)
        told.append((type(caught.value), caught.value.hint))
    assert told[0] == told[1]
    with pytest.raises(UsageError, match="there is no runtime 'rust'"):
        Engine.open(example_bundle, runtime="rust")  # type: ignore[arg-type]


def test_the_command_line(
    named_library: Path,
    example_bundle: Path,
    samples: list[tuple[str, Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    question, image = samples[0]
    options = ["run", str(example_bundle), "--prompt", question, "--image", str(image), "--threads", "1"]
    assert run([*options, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert run([*options, "--runtime", "native", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("timings_ms").keys() == expected.pop("timings_ms").keys()
    assert found == expected
    assert run([*options, "--runtime", "native", "--stream"]) == 0
    assert capsys.readouterr().out == expected["text"] + "\n"


def test_a_program_may_end_in_the_middle_of_a_stream(
    named_library: Path, example_bundle: Path, repository: Path
) -> None:
    program = (
        "import sys\nfrom nvlm_deploy import Engine\n"
        "engine = Engine.open(sys.argv[1], threads=1, runtime='native')\n"
        "stream = engine.generate('x', max_new_tokens=100000, temperature=9.0, seed=3, stream=True)\n"
        "print(len(next(stream)) > 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, example_bundle],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
