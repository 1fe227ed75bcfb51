"""Prompt tables, extra ids and the arguments of requests, without TensorRT-LLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from nvlm_deploy.backends.protocol import TokenRequest
from nvlm_deploy.backends.tensorrt_llm.interface import V0_12, V1
from nvlm_deploy.backends.tensorrt_llm.prompt_table import embedding_table, extra_ids, prompt_ids
from nvlm_deploy.backends.tensorrt_llm.requests import (
    AssembledRequest,
    EngineFacts,
    assemble,
    kv_cache_arguments,
    kv_fraction,
)
from nvlm_deploy.backends.tensorrt_llm.session import merged
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError

VOCABULARY, PER_TILE, PLACEHOLDER = 1000, 4, 777
FACTS = EngineFacts(
    vocab_size=VOCABULARY,
    context=64,
    max_batch=2,
    table_rows=3 * PER_TILE,
    tokens_per_tile=PER_TILE,
    dtype="bfloat16",
    kv_tokens=128,
    reserved_bytes=1 << 30,
    chunked_context=True,
)


def image(tiles: int, seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (tiles, 8, 8, 3), dtype=np.uint8)


def request(tiles: tuple[npt.NDArray[np.uint8], ...] = (), **changes: Any) -> TokenRequest:
    """Five tokens of text, and before each tile one more."""
    ids = [1, 2, 3]
    places: list[int] = []
    for _ in range(sum(len(each) for each in tiles)):
        ids.append(9)
        places += range(len(ids), len(ids) + PER_TILE)
        ids += [PLACEHOLDER] * PER_TILE
    ids += [4, 5]
    visual = np.zeros((len(places), 16), np.float32) if places else None
    settings: dict[str, Any] = {"max_new_tokens": 10, "end_id": 2, **changes}
    return TokenRequest(np.array(ids), np.array(places, np.int64), tiles, visual, **settings)


def test_ids_run_over_all_tiles_of_a_request() -> None:
    asked = request((image(2, seed=1), image(1, seed=2)))
    ids = prompt_ids(asked.input_ids, asked.visual_positions, VOCABULARY)
    rows = [i - VOCABULARY for i in ids if i >= VOCABULARY]
    assert rows == list(range(3 * PER_TILE))
    assert [i for i in ids if i < VOCABULARY] == [1, 2, 3, 9, 9, 9, 4, 5]
    assert asked.input_ids[4] == PLACEHOLDER, "the caller's ids stay as they are"


def test_text_that_would_read_the_table_is_refused() -> None:
    with pytest.raises(NvlmError, match="outside the vocabulary"):
        prompt_ids(np.array([1, VOCABULARY]), np.array([], np.int64), VOCABULARY)


def test_extra_ids_tell_images_apart_and_nothing_else() -> None:
    one, other = image(2, seed=1), image(2, seed=2)
    asked = request((one,))
    places = asked.visual_positions

    def extra(*images: npt.NDArray[np.uint8]) -> list[int]:
        return extra_ids(len(asked.input_ids), places, images, PER_TILE)

    first = extra(one)
    assert first == extra(one.copy())
    text = sorted(set(range(len(first))) - set(places.tolist()))
    assert {first[i] for i in text} == {0}
    assert all(0 < first[i] < 1 << 64 for i in places)
    assert len({first[i] for i in places}) == 2, "one for each tile"
    assert not {first[i] for i in places} & set(extra(other))
    changed = one.copy()
    changed[1, 7, 7, 2] ^= 1
    ours, theirs = (np.array(ids, np.uint64)[places] for ids in (first, extra(changed)))
    assert (ours == theirs).tolist() == [True] * PER_TILE + [False] * PER_TILE


def test_extra_ids_need_the_tiles_of_all_visual_tokens() -> None:
    asked = request((image(2, seed=1),))
    with pytest.raises(NvlmError, match="1 tiles"):
        extra_ids(len(asked.input_ids), asked.visual_positions, [image(1, seed=1)], PER_TILE)


def test_the_table_is_in_the_dtype_of_the_decoder() -> None:
    values = np.linspace(-3, 3, 32, dtype=np.float32).reshape(2, 16)
    table = embedding_table(values, "bfloat16")
    assert table.dtype is torch.bfloat16
    assert torch.equal(table, torch.from_numpy(values).bfloat16())
    assert embedding_table(values * 1e4, "bfloat16").isfinite().all()
    with pytest.raises(NvlmError, match="not finite in float16"):
        embedding_table(values * 1e5, "float16")


def test_a_request_by_release() -> None:
    asked = request((image(1, seed=1),), temperature=0.7, top_k=5, top_p=0.9, seed=3)
    new, old = assemble(asked, FACTS, V1), assemble(asked, FACTS, V0_12)
    assert new.request["max_tokens"] == old.request["max_new_tokens"] == 10
    assert new.sampling == {"beam_width": 1, "top_k": 5, "top_p": 0.9, "temperature": 0.7, "seed": 3}
    assert old.sampling["random_seed"] == 3
    assert new.extra_ids is not None
    assert len(new.extra_ids) == len(asked.input_ids)
    assert old.extra_ids is None
    assert new.request["streaming"] is True
    assert new.output["exclude_input_from_output"] is True


def test_greedy_and_text() -> None:
    made: AssembledRequest = assemble(request(max_new_tokens=1000), FACTS, V1)
    assert made.sampling == {"beam_width": 1, "top_k": 1}
    assert made.extra_ids is None
    assert made.request["max_tokens"] == FACTS.context - 5


def test_sampling_without_limits_is_no_greedy_decoding() -> None:
    made = assemble(request(temperature=1.0), FACTS, V1)
    assert made.sampling["top_p"] == 1.0
    assert made.sampling["top_k"] == 0


def test_requests_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="16 visual tokens"):
        assemble(request((image(4, seed=1),)), FACTS, V1)
    long = TokenRequest(np.ones(64, np.int64), np.array([], np.int64), (), None, 1, 2)
    with pytest.raises(UsageError, match="64 tokens"):
        assemble(long, FACTS, V1)


def test_the_cache_leaves_room_for_the_vision_engine() -> None:
    assert kv_fraction(10 << 30, 1 << 30) == 0.9
    assert kv_fraction(4 << 30, 1 << 30) == 0.75
    with pytest.raises(UnsuitableError, match="nothing is left"):
        kv_fraction(1 << 30, 1 << 30)
    assert kv_cache_arguments(FACTS, V1, 4 << 30) == {
        "enable_block_reuse": True,
        "max_tokens": 128,
        "free_gpu_memory_fraction": 0.75,
    }
    # Without extra ids the cache cannot tell images apart.
    assert kv_cache_arguments(FACTS, V0_12, 4 << 30)["enable_block_reuse"] is False


def test_responses_are_joined_in_order() -> None:
    def response(tokens: list[int], *, final: bool = False) -> SimpleNamespace:
        result = SimpleNamespace(output_token_ids=[tokens], is_final=final, log_probs=None)
        return SimpleNamespace(has_error=lambda: False, error_msg="", result=result)

    update = merged([response([5]), response([6, 7]), response([], final=True)])
    assert update.tokens == (5, 6, 7)
    assert update.final
    failed = SimpleNamespace(has_error=lambda: True, error_msg="out of blocks", result=None)
    with pytest.raises(NvlmError, match="out of blocks"):
        merged([response([5]), failed])
