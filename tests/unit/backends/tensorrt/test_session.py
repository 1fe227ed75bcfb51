"""Sessions of plans against the PyTorch model, on a device of host memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvlm_deploy.backends.tensorrt import profiles
from nvlm_deploy.backends.tensorrt.session import PlanDecoderSession
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.models import NvlmD
from nvlm_deploy.preprocess import normalize_tiles

from ..conftest import CONTEXT
from .conftest import OpenSessions

# The oldest set, whose new keys and values the session copies, and the newest, which writes in place.
ENGINES = {"concat": ("jetson-agx-orin-64gb", "tensorrt"), "in place": ("l40s-48gb", "tensorrt_rtx")}
PIECE = 8


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def reference(model: NvlmD, ids: np.ndarray, visual: np.ndarray | None = None, at: int = 0) -> np.ndarray:
    """Logits [S, vocabulary] of one row; `visual` [V, D] stands from position `at` on."""
    given = torch.from_numpy(ids)[None]
    mask = torch.zeros(given.shape, dtype=torch.bool)
    if visual is not None:
        mask[0, at : at + len(visual)] = True
    with torch.inference_mode():
        tokens = None if visual is None else torch.from_numpy(visual)[None]
        embeds = model.embed(given, tokens, mask)
        return model.language.logits(model.language(embeds))[0].numpy()


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "PREFILL_TOKENS", PIECE)
    monkeypatch.setattr(profiles, "MAX_POSITIONS", 3)


def greedy(session: PlanDecoderSession, ids: np.ndarray, steps: int) -> list[np.ndarray]:
    cache = session.new_cache(1, CONTEXT)
    logits = [session.run(ids[None], np.array([len(ids)], np.int32), cache)[0]]
    for _ in range(steps):
        token = np.array([[logits[-1].argmax()]])
        logits.append(session.run(token, np.ones(1, np.int32), cache)[0])
    return logits


@pytest.mark.parametrize("name", ENGINES)
def test_tiles_beyond_the_profile_are_encoded_in_parts(
    open_sessions: OpenSessions, model: NvlmD, name: str
) -> None:
    session, _, _ = open_sessions(*ENGINES[name])
    side = model.config.tile_size
    tiles = np.random.default_rng(0).integers(0, 256, (9, side, side, 3), np.uint8)
    with torch.inference_mode():
        expected = model.encode_tiles(torch.from_numpy(normalize_tiles(tiles))).numpy()
    assert relative_error(session.encode(tiles), expected) < 1e-5
    with pytest.raises(NvlmError, match="tiles must be uint8"):
        session.encode(tiles[:, :2])


@pytest.mark.parametrize("profile_count", [1, 2])
@pytest.mark.parametrize("name", ENGINES)
def test_a_prompt_of_several_pieces_and_single_tokens(
    open_sessions: OpenSessions, model: NvlmD, name: str, profile_count: int
) -> None:
    _, session, device = open_sessions(*ENGINES[name], f"decoder_profiles={profile_count}")
    ids = np.random.default_rng(1).integers(0, session.vocab_size, 2 * PIECE + 5)
    logits = greedy(session, ids, 6)
    tokens = [int(row.argmax()) for row in logits[:-1]]
    expected = reference(model, np.concatenate([ids, tokens]))[-len(logits) :]
    assert relative_error(np.stack(logits), expected) < 1e-5
    # Once without, then captured, and launched from there on.
    assert device.captured == 1
    assert session.context_length == CONTEXT


@pytest.mark.parametrize("name", ENGINES)
def test_rows_of_unequal_length_with_visual_tokens(
    open_sessions: OpenSessions, model: NvlmD, name: str
) -> None:
    _, session, _ = open_sessions(*ENGINES[name], "limits.max_batch=3")
    rng, lengths = np.random.default_rng(2), [PIECE, 3, 2 * PIECE + 1]
    rows = [rng.integers(0, session.vocab_size, length + 1) for length in lengths]
    visual = rng.standard_normal((4, model.config.language.hidden_size)).astype(np.float32)
    index = np.array([[2, p] for p in range(6, 10)])
    padded = np.zeros((3, max(lengths)), np.int64)
    for row, ids in enumerate(rows):
        padded[row, : lengths[row]] = ids[:-1]
    cache = session.new_cache(3, CONTEXT)
    first = session.run(padded, np.array(lengths, np.int32), cache, visual, index)
    second = session.run(np.stack([ids[-1:] for ids in rows]), np.ones(3, np.int32), cache)
    assert cache.lengths.tolist() == [length + 1 for length in lengths]
    for row, ids in enumerate(rows):
        expected = reference(model, ids, visual if row == 2 else None, at=6)
        assert relative_error(first[row], expected[-2]) < 1e-5
        assert relative_error(second[row], expected[-1]) < 1e-5


@pytest.mark.parametrize("name", ENGINES)
def test_more_positions_than_a_step_gives(open_sessions: OpenSessions, model: NvlmD, name: str) -> None:
    _, session, _ = open_sessions(*ENGINES[name])
    ids = np.random.default_rng(3).integers(0, session.vocab_size, 20)
    cache, wanted = session.new_cache(1, 20), np.arange(2, 20)
    logits = session.run(ids[None], np.array([20], np.int32), cache, logit_positions=wanted[None])
    assert relative_error(logits[0], reference(model, ids)[2:]) < 1e-5


@pytest.mark.parametrize("name", ENGINES)
def test_tokens_that_were_dropped_are_forgotten(open_sessions: OpenSessions, model: NvlmD, name: str) -> None:
    _, session, _ = open_sessions(*ENGINES[name])
    ids = np.random.default_rng(4).integers(0, session.vocab_size, 12)
    cache = session.new_cache(1, CONTEXT)
    session.run(ids[None, :8], np.array([8], np.int32), cache)
    cache.lengths[:] = 5
    again = session.run(ids[None, 8:], np.array([4], np.int32), cache)
    expected = reference(model, np.concatenate([ids[:5], ids[8:]]))
    assert relative_error(again[0], expected[-1]) < 1e-5


def test_rows_and_tokens_beyond_the_plan_are_refused(open_sessions: OpenSessions) -> None:
    _, session, _ = open_sessions(*ENGINES["concat"])
    with pytest.raises(NvlmError, match="2 rows are asked for") as caught:
        session.new_cache(2, 16)
    assert "limits.max_batch=2" in str(caught.value.hint)
    with pytest.raises(NvlmError, match="does not fit this engine's context"):
        session.new_cache(1, CONTEXT + 1)
    cache = session.new_cache(1, 16)
    with pytest.raises(NvlmError, match="do not fit into a cache"):
        session.run(np.zeros((1, 17), np.int64), np.array([17], np.int32), cache)


def test_fp16_engines_keep_their_cache_in_fp16(open_sessions: OpenSessions, model: NvlmD) -> None:
    _, session, _ = open_sessions(*ENGINES["concat"], format="fp16")
    cache = session.new_cache(1, CONTEXT)
    language = model.config.language
    numbers = 2 * language.num_layers * language.num_kv_heads * CONTEXT * language.head_dim
    assert cache.buffer.nbytes == 2 * numbers
    ids = np.random.default_rng(5).integers(0, session.vocab_size, 10)
    logits = session.run(ids[None], np.array([10], np.int32), cache)
    assert relative_error(logits[0], reference(model, ids)[-1]) < 5e-3
