"""Engines of a random checkpoint: states, logits and stored matrices are those of the PyTorch model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nvlm_deploy.backends.onnxruntime.probe import GraphProbe
from nvlm_deploy.backends.onnxruntime.stored import stored_matrices
from nvlm_deploy.backends.protocol import SessionOptions
from nvlm_deploy.checkpoint import ModelWeights
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.models import load_model
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.quantization.streamed_model import StreamedModel
from nvlm_deploy.verify.compare import compare_states
from nvlm_deploy.verify.engine_subject import EngineSubject
from nvlm_deploy.verify.measure import PromptSet
from nvlm_deploy.verify.states import decoder_places, tower_places
from nvlm_deploy.verify.walk import ModelWalk, WalkResult, split_states
from nvlm_deploy.verify.weights import engine_weights, relative_error


def test_the_streamed_walk_is_the_whole_model(
    tiny_checkpoint: Path, prompts: PromptSet, reference: WalkResult
) -> None:
    model = load_model(tiny_checkpoint)
    for prompt, logits in zip(prompts.all, reference.logits, strict=True):
        sequence = prompt.sequence
        ids = torch.from_numpy(sequence.input_ids)[None]
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, torch.from_numpy(sequence.visual_positions)] = True
        pixels = torch.from_numpy(normalize_tiles(sequence.tiles)) if len(sequence.tiles) else None
        with torch.no_grad():
            expected = model(ids, pixels, mask)[0, torch.from_numpy(prompt.logit_positions)]
        np.testing.assert_allclose(logits, expected.numpy(), atol=2e-6)


def test_the_decoder_alone_walks_on_given_visual_tokens(
    weights: ModelWeights, prompts: PromptSet, reference: WalkResult
) -> None:
    probed, visual = prompts.probed_prompts(reference)
    walk = ModelWalk(StreamedModel(weights, torch.device("cpu")))
    tower, decoder = split_states(walk.run(probed, frozenset(range(len(probed))), visual).states)
    assert tower == {}
    for name, rows in decoder.items():
        np.testing.assert_allclose(rows, reference.states[name], atol=1e-6)


def test_every_place_of_an_fp32_engine_has_the_models_state(
    fp32_bundle: Path, prompts: PromptSet, reference: WalkResult
) -> None:
    subject = EngineSubject(fp32_bundle, SessionOptions(threads=1))
    config = subject.bundle.config
    places = (*tower_places(config), *decoder_places(config))
    assert {place.name for place in places} == set(reference.states)
    states = subject.states(*prompts.probed_prompts(reference))
    figures = compare_states(places, reference.states, states)
    assert len(figures) == 2 * 2 * 2 + 2 + 1
    for each in figures:
        assert each.cosine > 0.999999, each
        assert each.branch is None or each.branch > 0.9999, each
        np.testing.assert_allclose(states[each.name], reference.states[each.name], atol=1e-4)


def test_logits_of_an_fp32_engine_are_the_models(
    fp32_bundle: Path, prompts: PromptSet, reference: WalkResult
) -> None:
    logits = EngineSubject(fp32_bundle, SessionOptions(threads=1)).logits(prompts.all)
    for ours, theirs in zip(reference.logits, logits, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_a_place_that_a_graph_does_not_have_is_named(fp32_bundle: Path) -> None:
    graph = fp32_bundle / "llm" / "decoder.onnx"
    with pytest.raises(NvlmError, match=r"belongs to language\.layers\.9\.input_norm, so nine"):
        GraphProbe(graph, {"nine": "language.layers.9.input_norm"}, SessionOptions())


@pytest.mark.parametrize(("bundle", "worst"), [("fp32_bundle", 1e-7), ("int4_bundle", 0.1)])
def test_every_matrix_is_read_as_what_it_stands_for(
    bundle: str, worst: float, weights: ModelWeights, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(bundle)
    figures = [
        figure
        for graph in ("vision/vision.onnx", "llm/decoder.onnx")
        for figure in engine_weights(weights, stored_matrices(directory / graph))
    ]
    matrices = {n for n in weights.names() if n.endswith(".weight") and len(weights.shape(n)) == 2}
    assert {figure.name for figure in figures} == matrices
    assert max(figure.error for figure in figures) < worst


def test_zero_points_are_read(int4_bundle: Path, weights: ModelWeights) -> None:
    graph = int4_bundle / "llm" / "decoder.onnx"
    (down,) = (each for each in stored_matrices(graph) if "layers.1.mlp.down_proj" in each.name)
    stored = down.read(0, down.rows)
    exact = weights.read("language.layers.1.mlp.down_proj.weight", torch.float32).numpy()
    # Groups of 32 from the least to the largest value in 15 steps: half a step is the most that is lost.
    groups = exact.reshape(down.rows, -1, 32)
    step = (np.ptp(groups, axis=2) / 15)[..., None]
    assert (np.abs(stored.reshape(groups.shape) - groups) < 0.75 * step + 1e-4).all()


def test_factors_of_input_features_are_no_error_and_others_are() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(64, 32)).astype(np.float32)
    assert relative_error(exact, exact * rng.uniform(0.1, 9, 32).astype(np.float32)) < 1e-6
    assert relative_error(exact, exact * rng.uniform(0.1, 9, (64, 1)).astype(np.float32)) > 0.2
    assert relative_error(exact, np.roll(exact, 1, axis=0)) > 0.9
    broken = exact.copy()
    broken[3, 3] = np.nan
    assert relative_error(exact, broken) == np.inf
    assert relative_error(exact, np.zeros_like(exact)) == 1
