"""Engines of NVLM-X and NVLM-H, session by session: PyTorch's numbers, rows, pieces, text without images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from nvlm_deploy.backends import (
    DecoderSession,
    SeenTiles,
    SessionOptions,
    open_decoder_session,
    open_tile_session,
    open_vision_session,
)
from nvlm_deploy.backends.onnxruntime.cuda_graph import cuda_graph
from nvlm_deploy.backends.onnxruntime.lower import lower
from nvlm_deploy.backends.onnxruntime.probe import GraphProbe
from nvlm_deploy.backends.onnxruntime.session import OrtDecoderSession
from nvlm_deploy.backends.onnxruntime.stored import stored_matrices
from nvlm_deploy.checkpoint import CheckpointReader, ModelWeights
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.export import build_decoder, build_tiles, write_model
from nvlm_deploy.models import CrossTiles, load_model
from nvlm_deploy.preprocess import Prompt, PromptBuilder, Tokenizer, normalize_tiles
from nvlm_deploy.preprocess.assembly import tile_tags
from nvlm_deploy.runtime.encoder import ImageEncoder
from nvlm_deploy.runtime.image_cache import ImageCache
from nvlm_deploy.runtime.seen_tiles import first_look, later_look
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import cross_style_config
from tests.conftest import TINY_SHAPE

from .conftest import Build, plan_for

CONTEXT = 256
Array = np.ndarray[Any, Any]
Variant = Literal["X", "H"]
MakeWeights = Callable[..., ModelWeights]
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"placement": "before_layer", "kv_norm": "none", "gated_mlp": True, "attention_bias": True},
    {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 24, "bind_tags": False},
)
# Text between images; one with a single tile, of which NVLM-H has nothing in cross-attention.
QUESTIONS = (("A <image> B <image> C", (3, 1)), ("Text.", ()), ("<image>\nLonger, C?", (4,)))


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and the tiles of its images, uint8 [T, S, S, 3] each."""

    prompt: Prompt
    images: tuple[Array, ...]


class Opened:
    """The sessions of one engine, driven as the runtime drives them."""

    def __init__(self, weights: ModelWeights, directory: Path, chunk: int = 256) -> None:
        self.config, options = weights.reader.config, SessionOptions(threads=1, prefill_chunk=chunk)
        vision = open_vision_session("onnxruntime", directory / "vision/vision.onnx", options)
        tiles = open_tile_session("onnxruntime", directory / "llm/tiles.onnx", options)
        self.decoder = open_decoder_session("onnxruntime", directory / "llm/decoder.onnx", options)
        self.encoder = ImageEncoder(self.config, vision, tiles, ImageCache(0))
        self.builder = PromptBuilder(Tokenizer.from_directory(weights.reader.directory), self.config)

    def request(self, question: str, tiles: Sequence[int], seed: int = 0) -> Request:
        rng, side = np.random.default_rng(seed), self.config.tile_size
        images = tuple(rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8) for n in tiles)
        return Request(self.builder.build(question, tiles), images)

    def inputs(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Arguments of `DecoderSession.run` but the cache."""
        encoded = [[self.encoder.encode_tiles(image) for image in r.images] for r in requests]
        lengths = np.array([len(r.prompt) for r in requests], np.int32)
        ids = np.zeros((len(requests), lengths.max()), np.int64)
        for row, request in zip(ids, requests, strict=True):
            row[: len(request.prompt)] = request.prompt.input_ids
        places = [(b, p) for b, r in enumerate(requests) for p in r.prompt.visual_positions]
        visual = [image.visual for row in encoded for image in row]
        rows = [[image.states for image in row if image.states is not None] for row in encoded]
        return {
            "input_ids": ids,
            "new_lengths": lengths,
            "visual_tokens": np.concatenate(visual) if visual else None,
            "visual_index": np.array(places, np.int64).reshape(-1, 2) if visual else None,
            "tiles": first_look([r.prompt for r in requests], rows),
        }

    def logits(self, requests: Sequence[Request]) -> list[Array]:
        """Logits [S, vocabulary] of every position of each row."""
        inputs = self.inputs(requests)
        lengths = inputs["new_lengths"]
        positions = np.minimum(np.arange(lengths.max())[None], lengths[:, None] - 1)
        kv = self.decoder.new_cache(len(requests), CONTEXT)
        made = self.decoder.run(**inputs, cache=kv, logit_positions=positions)
        return [row[:length] for row, length in zip(made, lengths, strict=True)]


@pytest.fixture(scope="session")
def cross_weights(tmp_path_factory: pytest.TempPathFactory) -> MakeWeights:
    """Random checkpoints by variant and number of options; the same one again is not made again."""
    made: dict[tuple[str, int], ModelWeights] = {}

    def make(variant: Variant, number: int = 0) -> ModelWeights:
        key = (variant, number)
        if key not in made:
            directory = tmp_path_factory.mktemp("cross") / f"{variant}{number}"
            shape = replace(TINY_SHAPE, layers=3)
            write_random_checkpoint(cross_style_config(shape, variant, [0, 2], **OPTIONS[number]), directory)
            made[key] = ModelWeights(CheckpointReader(directory))
        return made[key]

    return make


@pytest.fixture(scope="session")
def opened(cross_weights: MakeWeights, build: Build) -> Callable[..., Opened]:
    def make(variant: Variant, number: int = 0, chunk: int = 256, **form: Any) -> Opened:
        weights = cross_weights(variant, number)
        return Opened(weights, build(weights, context=CONTEXT, **(form or {"format": "fp32"})), chunk)

    return make


loaded = cache(load_model)


def reference(directory: Path, request: Request) -> Array:
    """PyTorch's logits [S, vocabulary]."""
    model, prompt = loaded(directory), request.prompt
    ids = torch.from_numpy(prompt.input_ids)[None]
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, torch.from_numpy(prompt.visual_positions)] = True
    with torch.inference_mode():
        if not request.images:
            plain: Array = model(ids)[0].numpy()
            return plain
        pixels = torch.from_numpy(normalize_tiles(np.concatenate(request.images)))
        logits: Array = model(ids, pixels, mask, tiles=CrossTiles.of([prompt]))[0].numpy()
    return logits


def relative_error(actual: Array, expected: Array) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("number", range(len(OPTIONS)))
@pytest.mark.parametrize("variant", ["X", "H"])
def test_every_position_is_that_of_the_model(
    opened: Callable[..., Opened], cross_weights: MakeWeights, variant: Variant, number: int
) -> None:
    """Each row alone, and all in one batch of two images, none, and one."""
    engine = opened(variant, number)
    requests = [engine.request(question, tiles, seed=i) for i, (question, tiles) in enumerate(QUESTIONS)]
    together = engine.logits(requests)
    for request, in_batch in zip(requests, together, strict=True):
        expected = reference(cross_weights(variant, number).reader.directory, request)
        assert relative_error(engine.logits([request])[0], expected) < 1e-5
        assert relative_error(in_batch, expected) < 1e-5


@pytest.mark.parametrize("variant", ["X", "H"])
def test_pieces_of_a_prompt_are_the_whole(opened: Callable[..., Opened], variant: Variant) -> None:
    whole, pieces = opened(variant), opened(variant, chunk=7)
    requests = [whole.request(question, tiles) for question, tiles in QUESTIONS]
    for requested in ([requests[0]], requests):
        for a, b in zip(whole.logits(requested), pieces.logits(requested), strict=True):
            assert relative_error(b, a) < 1e-5


@pytest.mark.parametrize("variant", ["X", "H"])
def test_text_alone_is_the_bare_language_model_bit_for_bit(
    opened: Callable[..., Opened], cross_weights: MakeWeights, tmp_path: Path, variant: Variant
) -> None:
    weights, engine = cross_weights(variant), opened(variant)
    config, plan = weights.reader.config, plan_for(weights, {"format": "fp32"})
    write_model(lower(build_decoder(config.language, weights, plan, CONTEXT)), tmp_path / "bare.onnx")
    bare = open_decoder_session("onnxruntime", tmp_path / "bare.onnx", SessionOptions(threads=1))
    ids = engine.request("Who are you?", ()).prompt.input_ids
    made = [greedy(session, ids) for session in (engine.decoder, bare)]
    assert np.array_equal(made[0], made[1])


def greedy(session: DecoderSession, ids: Array, steps: int = 4) -> Array:
    """Logits [steps, vocabulary] of greedy decoding."""
    kv = session.new_cache(1, CONTEXT)
    logits = [session.run(ids[None], np.array([len(ids)], np.int32), kv)[0]]
    for _ in range(steps - 1):
        token = np.array([[logits[-1].argmax()]])
        logits.append(session.run(token, np.ones(1, np.int32), kv)[0])
    return np.stack(logits)


def test_tokens_that_see_nothing_get_exactly_nothing(opened: Callable[..., Opened]) -> None:
    """A row of text beside one with tiles, whatever those hold."""
    engine = opened("X")
    text, image = engine.request("Text that is long enough.", ()), engine.request("<image>", (1,))
    inputs = engine.inputs([text, image])
    seen = inputs["tiles"]
    louder = replace(seen.states, values=tuple(1000 * values for values in seen.states.values))
    results = []
    for states in (seen.states, louder):
        kv = engine.decoder.new_cache(2, CONTEXT)
        tiles = SeenTiles(states, seen.visible)
        results.append(engine.decoder.run(**{**inputs, "tiles": tiles}, cache=kv))
    assert np.array_equal(results[0][0], results[1][0])
    assert not np.array_equal(results[0][1], results[1][1])


def test_decoding_goes_on_with_all_tiles(opened: Callable[..., Opened], cross_weights: MakeWeights) -> None:
    """Decoding step by step is one long prompt, in a batch whose rows have different tiles."""
    engine = opened("H")
    requests = [
        engine.request("A <image>", (3,)),
        engine.request("Text.", ()),
        engine.request("<image>B", (2,)),
    ]
    inputs = engine.inputs(requests)
    kv = engine.decoder.new_cache(3, CONTEXT)
    engine.decoder.run(**inputs, cache=kv)
    tiles = later_look(inputs["tiles"])
    added = np.array([[5, 9], [77, 3], [40, 41]])
    for step in range(2):
        logits = engine.decoder.run(added[:, step : step + 1], np.ones(3, np.int32), kv, tiles=tiles)
    directory = cross_weights("H").reader.directory
    for row, request in enumerate(requests):
        cross = request.prompt.cross
        assert cross is not None
        longer = replace(
            request.prompt,
            input_ids=np.concatenate([request.prompt.input_ids, added[row]]),
            cross=replace(cross, visible=np.concatenate([cross.visible, cross.visible[[-1, -1]]])),
        )
        expected = reference(directory, Request(longer, request.images))[-1]
        assert relative_error(logits[row], expected) < 1e-5


@pytest.mark.parametrize(
    ("variant", "form"),
    [
        ("X", {"format": "fp16"}),
        ("X", {"format": "int4", "group_size": 32}),
        ("H", {"format": "int8", "group_size": 32}),
    ],
    ids=["X-fp16", "X-int4", "H-int8"],
)
def test_quantized_engines_stay_near(
    opened: Callable[..., Opened], cross_weights: MakeWeights, variant: Variant, form: dict[str, Any]
) -> None:
    engine = opened(variant, **form)
    request = engine.request(*QUESTIONS[0])
    expected = reference(cross_weights(variant).reader.directory, request)
    bound = {"fp16": 2e-3, "int8": 2e-2, "int4": 0.25}[form["format"]]
    assert relative_error(engine.logits([request])[0], expected) < bound


@pytest.mark.parametrize("variant", ["X", "H"])
@pytest.mark.parametrize("form", [{"format": "fp32"}, {"format": "int4", "group_size": 32}], ids=str)
def test_standard_graphs_pass_the_checker(
    cross_weights: MakeWeights, tmp_path: Path, variant: Variant, form: dict[str, Any]
) -> None:
    for name, graph in standard(cross_weights(variant), form).items():
        assert {node.domain for node in graph.graph.all_nodes()} == {""}
        write_model(graph, tmp_path / name)
        onnx.checker.check_model(str(tmp_path / name), full_check=True)


def standard(weights: ModelWeights, form: dict[str, Any]) -> dict[str, ir.Model]:
    config, plan = weights.reader.config, plan_for(weights, form)
    tags = tile_tags(Tokenizer.from_directory(weights.reader.directory), config)
    cross = config.cross_attention
    return {
        "decoder.onnx": build_decoder(config.language, weights, plan, CONTEXT, cross_attention=cross),
        "tiles.onnx": build_tiles(config, weights, plan, tags),
    }


def test_branches_have_the_fast_kernels(cross_weights: MakeWeights) -> None:
    graphs = standard(cross_weights("X"), {"format": "int4", "group_size": 32, "activations": "int8"})
    decoder, tiles = (lower(graphs[name]).graph for name in ("decoder.onnx", "tiles.onnx"))
    branches = [node.attributes["then_branch"].as_graph() for node in decoder if node.op_type == "If"]
    assert len(branches) == 2
    for branch in branches:
        kernels = Counter(node.op_type for node in branch)
        assert kernels["MatMulNBits"] == 2
        # Scores, and what is made of values: no weights.
        assert (kernels["FusedMatMul"], kernels["MatMul"], kernels["DequantizeLinear"]) == (1, 1, 0)
        assert {n.attributes["accuracy_level"].as_int() for n in branch if n.op_type == "MatMulNBits"} == {4}
        assert not branch.initializers
    assert Counter(node.op_type for node in tiles)["MatMulNBits"] == 4


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda seen: replace(seen, visible=seen.visible + 3), "must lie within the rows' tiles"),
        (lambda seen: replace(seen, visible=seen.visible[:, :2]), r"must be \[B, S, 2\]"),
        (lambda seen: replace(seen, states=replace(seen.states, keys=())), "for each of 2 layers"),
    ],
    ids=["behind", "short", "layers"],
)
def test_tiles_that_do_not_fit_are_refused(
    opened: Callable[..., Opened], change: Callable[[SeenTiles], SeenTiles], problem: str
) -> None:
    engine = opened("X")
    inputs = engine.inputs([engine.request("<image>", (3,))])
    with pytest.raises(NvlmError, match=problem):
        engine.decoder.run(
            **{**inputs, "tiles": change(inputs["tiles"])}, cache=engine.decoder.new_cache(1, CONTEXT)
        )


def test_an_engine_without_cross_attention_takes_no_tiles(
    build: Build, opened: Callable[..., Opened]
) -> None:
    engine = opened("X")
    inputs = engine.inputs([engine.request("<image>", (3,))])
    path = build(format="fp32") / "llm/decoder.onnx"
    session = open_decoder_session("onnxruntime", path, SessionOptions(threads=1))
    with pytest.raises(NvlmError, match="no cross-attention"):
        session.run(**inputs, cache=session.new_cache(1, 8))


def test_graphs_for_cuda_compute_the_same(cross_weights: MakeWeights, build: Build) -> None:
    """The branches stay in FP32; only attention to text, and its cache, are in FP16."""
    directory = build(cross_weights("H"), context=CONTEXT, format="fp32")
    engine = Opened(cross_weights("H"), directory)
    inputs = engine.inputs([engine.request(*QUESTIONS[0])])
    path, options = directory / "llm/decoder.onnx", SessionOptions(threads=1)
    logits = []
    for session in (engine.decoder, OrtDecoderSession(path, options, cuda_graph(path))):
        logits.append(session.run(**inputs, cache=session.new_cache(1, CONTEXT)))
    assert 0 < relative_error(logits[1], logits[0]) < 5e-3
    assert cuda_graph(directory / "llm/tiles.onnx")


def test_stored_matrices_are_found_in_branches_and_for_tiles(
    cross_weights: MakeWeights, build: Build
) -> None:
    weights = cross_weights("H")
    directory = build(weights, context=CONTEXT, format="int4", group_size=32)
    found = {
        matrix.name.removesuffix(".lowered"): matrix
        for graph in ("decoder", "tiles")
        for matrix in stored_matrices(directory / f"llm/{graph}.onnx")
    }
    for kind in "qkvo":
        name = f"language.layers.2.cross.attention.{kind}_proj"
        stored = found[name].read(0, found[name].rows)
        original = weights.read(f"{name}.weight", torch.float32).numpy()
        assert relative_error(stored, original) < 0.15


def test_the_residual_stream_is_that_of_the_model(cross_weights: MakeWeights, build: Build) -> None:
    """Read between layers, with tiles and without."""
    weights = cross_weights("H")
    directory = build(weights, context=CONTEXT, format="fp32")
    engine = Opened(weights, directory)
    readers = {"last": "language.norm", "middle": "language.layers.1.input_norm"}
    probe = GraphProbe(directory / "llm/decoder.onnx", readers, SessionOptions(threads=1))
    model = loaded(weights.reader.directory)
    for question, tiles in (("<image>", (3,)), ("Text.", ())):
        request = engine.request(question, tiles)
        inputs, ids = engine.inputs([request]), request.prompt.input_ids
        visual = inputs["visual_tokens"] if tiles else np.empty((0, 64), np.float32)
        places, where = request.prompt.visual_positions, np.array([0, len(ids) - 1])
        states = probe.prompt(ids, visual, places, where, inputs["tiles"])
        norm = model.language.norm(torch.from_numpy(states["last"]))
        with torch.inference_mode():
            logits = model.language.logits(norm).numpy()
        assert relative_error(logits, reference(weights.reader.directory, request)[where]) < 1e-5
        assert relative_error(states["middle"], states["last"]) > 0.01
