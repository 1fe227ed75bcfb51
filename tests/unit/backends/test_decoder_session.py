"""The decoder session: batches, pieces, continuation, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvlm_deploy.backends import DecoderSession, SessionOptions, open_decoder_session
from nvlm_deploy.checkpoint import ModelWeights
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.models import Nvlm, load_model

from .conftest import CONTEXT, Build

CAPACITY = 48
Array = np.ndarray[Any, Any]


def open_decoder(engine: Path, **options: Any) -> DecoderSession:
    path = engine / "llm/decoder.onnx"
    return open_decoder_session("onnxruntime", path, SessionOptions(threads=1, **options))


@pytest.fixture(scope="module")
def session(build: Build) -> DecoderSession:
    return open_decoder(build(format="fp32"))


def random_ids(session: DecoderSession, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, session.vocab_size, shape)


def run_alone(session: DecoderSession, ids: Array, **visual: Any) -> Array:
    """Logits [P, vocabulary] of every position of one prompt."""
    positions = np.arange(len(ids))[None]
    cache = session.new_cache(1, CAPACITY)
    lengths = np.array([len(ids)], np.int32)
    logits: Array = session.run(ids[None], lengths, cache, logit_positions=positions, **visual)[0]
    return logits


def reference(model: Nvlm, ids: Array, visual: Array | None = None, places: list[int] | None = None) -> Array:
    mask = np.zeros((1, len(ids)), bool)
    mask[0, places or []] = True
    with torch.inference_mode():
        tokens = None if visual is None else torch.from_numpy(visual)[None]
        embeds = model.embed(torch.from_numpy(ids)[None], tokens, torch.from_numpy(mask))
        logits: Array = model.language.logits(model.language(embeds))[0].numpy()
    return logits


def relative_error(actual: Array, expected: Array) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def test_logits_are_the_models(session: DecoderSession, model: Nvlm) -> None:
    ids = random_ids(session, 20)
    visual = (
        np.random.default_rng(2).standard_normal((3, model.config.language.hidden_size)).astype(np.float32)
    )
    index = np.array([[0, 4], [0, 5], [0, 11]])
    logits = run_alone(session, ids, visual_tokens=visual, visual_index=index)
    assert relative_error(logits, reference(model, ids, visual, [4, 5, 11])) < 1e-5


@pytest.mark.parametrize(
    "form", [{"format": "fp32"}, {"format": "int4", "group_size": 32, "activations": "int8"}]
)
def test_a_batch_of_unequal_prompts_equals_each_prompt_alone(build: Build, form: dict[str, Any]) -> None:
    session = open_decoder(build(**form))
    lengths = np.array([5, 17, 1, 11], np.int32)
    ids = random_ids(session, 4, 17)
    padded = np.where(np.arange(17) < lengths[:, None], ids, -7)
    cache = session.new_cache(4, CAPACITY)
    steps = [session.run(padded, lengths, cache)]
    steps += [session.run(random_ids(session, 4, 1, seed=s), np.ones(4, np.int32), cache) for s in (1, 2, 3)]
    assert cache.lengths.tolist() == (lengths + 3).tolist()
    for row, length in enumerate(lengths):
        new = np.concatenate([random_ids(session, 4, 1, seed=s)[row] for s in (1, 2, 3)])
        alone = run_alone(session, np.concatenate([ids[row, :length], new]))[length - 1 :]
        for step, expected in zip(steps, alone, strict=True):
            assert np.allclose(step[row], expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("form", [{"format": "fp32"}, {"format": "int8", "group_size": 32}])
def test_pieces_equal_the_whole(build: Build, form: dict[str, Any]) -> None:
    session, small = open_decoder(build(**form)), open_decoder(build(**form), prefill_chunk=7)
    ids = random_ids(session, 25)
    visual = np.random.default_rng(2).standard_normal((4, 64)).astype(np.float32)
    index = np.array([[0, 24], [0, 6], [0, 7], [0, 0]])
    whole = run_alone(session, ids, visual_tokens=visual, visual_index=index)
    pieces = run_alone(small, ids, visual_tokens=visual, visual_index=index)
    assert relative_error(pieces, whole) < 1e-5
    cache = small.new_cache(1, CAPACITY)
    last = small.run(ids[None], np.array([25], np.int32), cache, visual, index)
    assert relative_error(last[0], whole[-1]) < 1e-5


def test_later_turns_of_a_batch_continue_each_row(session: DecoderSession) -> None:
    first, second = random_ids(session, 2, 8), random_ids(session, 2, 6, seed=1)
    lengths, more = np.array([8, 3], np.int32), np.array([2, 6], np.int32)
    visual = np.random.default_rng(2).standard_normal((1, 64)).astype(np.float32)
    cache = session.new_cache(2, CAPACITY)
    session.run(first, lengths, cache)
    logits = session.run(second, more, cache, visual, np.array([[1, 4]]))
    for row in range(2):
        ids = np.concatenate([first[row, : lengths[row]], second[row, : more[row]]])
        extra = {"visual_tokens": visual, "visual_index": np.array([[0, 7]])} if row else {}
        assert relative_error(logits[row], run_alone(session, ids, **extra)[-1]) < 1e-5


def test_shortening_the_cache_drops_the_last_tokens(session: DecoderSession) -> None:
    ids = random_ids(session, 12)
    cache = session.new_cache(1, CAPACITY)
    session.run(ids[None], np.array([12], np.int32), cache)
    cache.lengths[:] = 5
    again = session.run(ids[None, 5:9], np.array([4], np.int32), cache)
    assert relative_error(again[0], run_alone(session, ids[:9])[-1]) < 1e-5


def test_a_full_cache_takes_no_more(session: DecoderSession) -> None:
    cache = session.new_cache(2, 8)
    session.run(random_ids(session, 2, 8), np.array([8, 5], np.int32), cache)
    with pytest.raises(NvlmError, match="9 tokens do not fit into a cache of 8"):
        session.run(random_ids(session, 2, 1), np.ones(2, np.int32), cache)
    assert cache.lengths.tolist() == [8, 5]
    with pytest.raises(NvlmError, match=f"context of {CONTEXT}"):
        session.new_cache(1, CONTEXT + 1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"input_ids": np.array([[1, 320]])}, r"must lie in \[0, 320\)"),
        ({"input_ids": np.array([[1, -1]])}, r"must lie in \[0, 320\)"),
        ({"input_ids": np.array([1, 2])}, r"must be \[B, S\] and \[B\]"),
        ({"new_lengths": np.array([3], np.int32)}, "new_lengths must lie in"),
        ({"new_lengths": np.array([0], np.int32)}, "new_lengths must lie in"),
        ({"logit_positions": np.array([[2]])}, "logit_positions must lie within"),
        ({"visual_tokens": np.zeros((1, 64), np.float32)}, "come together"),
        (
            {"visual_tokens": np.zeros((1, 63), np.float32), "visual_index": np.zeros((1, 2), int)},
            r"\[V, 64\]",
        ),
        (
            {"visual_tokens": np.zeros((1, 64), np.float32), "visual_index": np.array([[0, 2]])},
            "visual_index must",
        ),
        (
            {"visual_tokens": np.zeros((1, 64), np.float32), "visual_index": np.array([[1, 0]])},
            "visual_index must",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(
    session: DecoderSession, change: dict[str, Any], problem: str
) -> None:
    arguments: dict[str, Any] = {"input_ids": np.array([[1, 2]]), "new_lengths": np.array([2], np.int32)}
    with pytest.raises(NvlmError, match=problem):
        session.run(**{**arguments, **change}, cache=session.new_cache(1, CAPACITY))


@pytest.mark.parametrize("variant", ["tied", "llama"])
@pytest.mark.parametrize(
    "form", [{"format": "fp16"}, {"format": "int4", "group_size": 32}], ids=["fp16", "int4"]
)
def test_other_decoders(
    build: Build, make_weights: Callable[..., ModelWeights], variant: str, form: dict[str, Any]
) -> None:
    from tests.conftest import TINY_SHAPE

    weights = make_weights(
        replace(TINY_SHAPE, tie_word_embeddings=variant == "tied"), llama=variant == "llama"
    )
    session = open_decoder(build(weights, **form))
    ids = random_ids(session, 10)
    expected = reference(load_model(weights.reader.directory), ids)
    assert relative_error(run_alone(session, ids), expected) < (2e-3 if form["format"] == "fp16" else 0.2)


def test_mapped_weights_give_the_same_logits(build: Build) -> None:
    for form in ({"format": "fp16"}, {"format": "int4", "group_size": 32}):
        engine = build(**form)
        fast, mapped = open_decoder(engine), open_decoder(engine, memory="mapped")
        ids = random_ids(fast, 10)
        assert relative_error(run_alone(mapped, ids), run_alone(fast, ids)) < 1e-5


def test_damaged_files_are_named(build: Build, tmp_path: Path) -> None:
    engine = build(format="int4", group_size=32)
    graph, data = (engine / f"llm/decoder.onnx{suffix}" for suffix in ("", ".data"))
    (tmp_path / "llm").mkdir()
    target = tmp_path / "llm/decoder.onnx"
    with pytest.raises(NvlmError, match=r"decoder\.onnx cannot be loaded"):
        open_decoder(tmp_path)
    target.write_bytes(graph.read_bytes()[:200])
    with pytest.raises(NvlmError, match=r"decoder\.onnx cannot be loaded"):
        open_decoder(tmp_path)
    target.write_bytes(graph.read_bytes())
    (tmp_path / "llm/decoder.onnx.data").write_bytes(data.read_bytes()[:1000])
    with pytest.raises(NvlmError, match=r"decoder\.onnx cannot be loaded"):
        open_decoder(tmp_path)


def test_unknown_backends_are_named() -> None:
    with pytest.raises(UsageError, match="no backend 'onnxrutime'") as caught:
        open_decoder_session("onnxrutime", Path("x"))
    assert caught.value.hint == "did you mean 'onnxruntime'?"
