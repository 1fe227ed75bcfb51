"""The engine as users drive it: chats, streams, stop strings, seeds, batches, image cache, context."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvlm_deploy import Engine
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.preprocess import ImageSource, Message
from nvlm_deploy.runtime import Request
from nvlm_deploy.runtime.sampling import Sampling

QUESTION = "What is the total?"


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> Engine:
    return Engine.open(tiny_bundle)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (120, 180, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_all_image_sources_give_one_answer(engine: Engine, image: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    image.save(path)
    sources: list[ImageSource] = [path, str(path), path.read_bytes(), image, np.asarray(image)]
    answers = {engine.generate(QUESTION, [source], max_new_tokens=8).output_ids for source in sources}
    assert len(answers) == 1


def test_greedy_is_deterministic_and_cache_changes_nothing(tiny_bundle: Path, image: Image.Image) -> None:
    engine = Engine.open(tiny_bundle, image_cache_bytes=0)
    uncached = [engine.generate(QUESTION, [image], max_new_tokens=12, top_logits=5) for _ in range(2)]
    cached_engine = Engine.open(tiny_bundle)
    cached = [cached_engine.generate(QUESTION, [image], max_new_tokens=12, top_logits=5) for _ in range(2)]
    assert cached_engine.image_cache.hits == 1
    assert len({(r.output_ids, r.first_token_top) for r in [*uncached, *cached]}) == 1


def test_batch_answers_each_as_alone(engine: Engine, image: Image.Image) -> None:
    small = image.resize((56, 56))
    requests = [
        Request(QUESTION, [image], max_new_tokens=10),
        Request("Describe the image in a few long words, please.", [small], max_new_tokens=3),
        Request("No image at all.", max_new_tokens=7),
        Request("<image> or <image>?", [small, image], max_new_tokens=5),
        Request(QUESTION, [image], max_new_tokens=6, sampling=Sampling(temperature=1.0, seed=3)),
    ]
    together = engine.generate_batch(requests)
    for request, result in zip(requests, together, strict=True):
        (alone,) = engine.generate_batch([request])
        assert result.output_ids == alone.output_ids
        assert result.text == alone.text
        assert len(result.output_ids) <= request.max_new_tokens


def test_stream_gives_the_same_text_in_pieces(engine: Engine, image: Image.Image) -> None:
    whole = engine.generate(QUESTION, [image], max_new_tokens=12)
    stream = engine.generate(QUESTION, [image], max_new_tokens=12, stream=True)
    with pytest.raises(UsageError, match="not been read to its end"):
        _ = stream.result
    pieces = list(stream)
    assert "".join(pieces) == whole.text == stream.result.text
    assert stream.result.output_ids == whole.output_ids


def test_stop_string_ends_the_answer_before_it(engine: Engine) -> None:
    whole = engine.generate("Tell me something.", max_new_tokens=24)
    assert len(whole.text) > 6
    stop = whole.text[3:6]
    stream = engine.generate("Tell me something.", max_new_tokens=24, stop=[stop], stream=True)
    pieces = "".join(stream)
    assert pieces == stream.result.text == whole.text[: whole.text.index(stop)]
    assert stream.result.finish_reason == "stop"


def test_seed_decides_the_sample(engine: Engine) -> None:
    texts = [
        engine.generate("Say anything.", max_new_tokens=16, temperature=1.5, seed=seed).output_ids
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_chat_with_history_and_literal_markers(engine: Engine, image: Image.Image) -> None:
    messages: list[Message] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": "<image>?"}],
        },
        {"role": "assistant", "content": "<|vision_pad|>"},
        {"role": "user", "content": "And now?"},
    ]
    result = engine.generate(messages, max_new_tokens=4)
    placeholder = engine.bundle.tokenizer.image_token_id
    tokens = len(result.images[0]) * engine.bundle.config.visual_tokens_per_tile
    assert result.input_ids.count(placeholder) == tokens


def test_report_has_every_stage(engine: Engine, image: Image.Image) -> None:
    result = engine.generate(QUESTION, [image], max_new_tokens=4, top_logits=3)
    stages = {"tile", "tokenize", "vision", "prefill", "first_token", "decode", "per_token", "total"}
    assert set(result.timings_ms) == stages
    assert result.timings_ms["total"] >= result.timings_ms["first_token"] >= result.timings_ms["prefill"] > 0
    assert len(result.first_token_top) == 3


def test_prompt_longer_than_the_context(engine: Engine) -> None:
    context = engine.bundle.manifest.context
    with pytest.raises(UsageError, match=rf"tokens and the engine's context is {context}") as caught:
        engine.generate("word " * context)
    assert caught.value.hint


def test_answer_ends_with_the_context(engine: Engine) -> None:
    context = engine.bundle.manifest.context
    overhead = len(engine.generate("", max_new_tokens=1).input_ids)
    prompt = "a" * (context - overhead - 5)
    result = engine.generate(prompt, max_new_tokens=1000)
    assert len(result.input_ids) == context - 5
    assert len(result.output_ids) == 5 or result.finish_reason == "stop"


@pytest.mark.parametrize(
    ("prompt", "count"), [("<image>", 0), ("<image>", 2), ("<image><image>", 1), ("<image> x <image>", 3)]
)
def test_images_must_fit_their_markers(engine: Engine, image: Image.Image, prompt: str, count: int) -> None:
    with pytest.raises(NvlmError):
        engine.generate(prompt, [image] * count)


def test_runtime_imports_no_builder(tiny_bundle: Path, image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "image.png")
    program = f"""
import sys
from nvlm_deploy import Engine
engine = Engine.open({str(tiny_bundle)!r})
print(len(engine.generate("Hello?", [{str(tmp_path / "image.png")!r}], max_new_tokens=2).output_ids))
loaded = [(name.partition(".")[0], getattr(module, "__file__", None)) for name, module in sys.modules.items()]
print(sorted({{name for name, file in loaded if "site-packages" in (file or "")}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    tokens, modules = done.stdout.splitlines()
    assert int(tokens) >= 0
    # Names with an underscore are hooks that setuptools puts into every interpreter of its environment.
    imported = {name for name in ast.literal_eval(modules) if not name.startswith("_")}
    assert imported - {"nvlm_deploy"} == {"numpy", "PIL", "tokenizers", "onnxruntime"}
