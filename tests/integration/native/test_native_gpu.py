"""GPU sessions without a GPU: what they do beside calling libraries; see gpu_probe.cpp of the runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvlm_deploy.backends.protocol import TokenRequest
from nvlm_deploy.backends.tensorrt_llm.interface import V0_12, V1
from nvlm_deploy.backends.tensorrt_llm.prompt_table import embedding_table
from nvlm_deploy.backends.tensorrt_llm.requests import EngineFacts, assemble, kv_fraction
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError

from .conftest import Probe

Ask = Callable[..., dict[str, Any]]
FACTS = EngineFacts(
    vocab_size=100,
    context=20,
    max_batch=1,
    table_rows=4,
    tokens_per_tile=2,
    dtype="bfloat16",
    kv_tokens=64,
    reserved_bytes=0,
    chunked_context=True,
)
HIDDEN, VOCABULARY, LAYERS = 4, 5, 2
_LARGEST = np.finfo(np.float32).max


@pytest.fixture(scope="module")
def ask(native_build: Path) -> Iterator[Ask]:
    """Asks gpu_probe."""
    probe = Probe(native_build / "tests" / "gpu_probe")
    yield lambda **line: json.loads(probe.ask(json.dumps(line)))
    probe.close()


def request(**changes: Any) -> TokenRequest:
    rng = np.random.default_rng(0)
    fields: dict[str, Any] = {
        "input_ids": np.array([5, 99, 0, 0, 7, 0, 0, 8]),
        "visual_positions": np.array([2, 3, 5, 6]),
        "tiles": (rng.integers(0, 256, (1, 2, 2, 3), np.uint8), rng.integers(0, 256, (1, 2, 2, 3), np.uint8)),
        "visual_tokens": rng.standard_normal((4, HIDDEN)).astype(np.float32),
        "max_new_tokens": 64,
        "end_id": 3,
    }
    return TokenRequest(**{**fields, **changes})


def native(ask: Ask, asked: TokenRequest, facts: EngineFacts = FACTS, extra: bool = True) -> dict[str, Any]:
    visual = asked.visual_tokens
    return ask(
        verb="assemble",
        facts={
            "vocab_size": facts.vocab_size,
            "context": facts.context,
            "table_rows": facts.table_rows,
            "tokens_per_tile": facts.tokens_per_tile,
            "hidden_size": HIDDEN,
            "dtype": facts.dtype,
        },
        extra=extra,
        ids=asked.input_ids.tolist(),
        positions=asked.visual_positions.tolist(),
        visual=[] if visual is None else visual.reshape(-1).tolist(),
        tiles=[tile.reshape(-1).tolist() for image in asked.tiles for tile in image],
        **{
            name: getattr(asked, name)
            for name in ("max_new_tokens", "end_id", "temperature", "top_k", "top_p")
        },
        seed=asked.seed,
    )


def bits(visual_VD: np.ndarray, dtype: str) -> list[int]:
    return [int(b) & 0xFFFF for b in embedding_table(visual_VD, dtype).view(torch.int16).reshape(-1)]


def test_a_request_is_assembled_as_in_python(ask: Ask) -> None:
    asked = request()
    made, expected = native(ask, asked), assemble(asked, FACTS, V1)
    assert made["ids"] == expected.request["input_token_ids"] == [5, 99, 100, 101, 7, 102, 103, 8]
    assert made["max_tokens"] == expected.request["max_tokens"] == 12
    assert made["end_id"] == 3
    assert asked.visual_tokens is not None
    assert made["table"] == bits(asked.visual_tokens, "bfloat16")
    assert made["table_rows"] == 4
    assert made["top_k"] == expected.sampling["top_k"] == 1
    assert made["temperature"] is made["top_p"] is made["seed"] is None


def test_extra_ids_tell_tiles_apart(ask: Ask) -> None:
    asked = request()
    extra, expected = native(ask, asked)["extra_ids"], assemble(asked, FACTS, V1).extra_ids
    assert expected is not None
    # The numbers are another hash than Python's; which tokens share one, and which have none, is the same.
    assert [extra.index(i) for i in extra] == [expected.index(i) for i in expected]
    assert [place for place, i in enumerate(extra) if i == 0] == [0, 1, 4, 7]
    same = request(tiles=(asked.tiles[0], asked.tiles[0]))
    assert native(ask, same)["extra_ids"][5] == extra[2]
    assert native(ask, asked, extra=V0_12.has_extra_ids)["extra_ids"] == []


def test_sampling_has_both_limits(ask: Ask) -> None:
    asked = request(temperature=0.5, top_k=7, top_p=0.75, seed=2**63 + 1)
    made, expected = native(ask, asked), assemble(asked, FACTS, V1).sampling
    expected.pop("beam_width")
    assert {name: made[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"input_ids": np.array([5, 100, 0, 0, 7, 0, 0, 8])}, NvlmError, "outside the vocabulary"),
        ({"input_ids": np.array([5, 99, 0, 0, 7, 0, 0] + 13 * [8])}, UsageError, "20 tokens"),
        ({"tiles": ()}, NvlmError, "0 tiles have no 4 visual tokens"),
        # The largest float is infinite in 16 bits.
        ({"visual_tokens": np.full((4, HIDDEN), _LARGEST)}, NvlmError, "not finite in bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused(
    ask: Ask, changes: dict[str, Any], status: type[NvlmError], message: str
) -> None:
    answer = native(ask, request(**changes))
    assert (answer["status"], message in answer["message"]) == (status.exit_code, True)


def test_a_prompt_table_that_is_too_small_is_refused(ask: Ask) -> None:
    asked = request(
        input_ids=np.zeros(6, np.int64),
        visual_positions=np.arange(6),
        visual_tokens=np.zeros((6, HIDDEN), np.float32),
    )
    answer = native(ask, asked)
    with pytest.raises(UsageError) as error:
        assemble(asked, FACTS, V1)
    assert (answer["status"], answer["message"]) == (2, str(error.value))


def test_numbers_are_rounded_as_torch_rounds_them(ask: Ask) -> None:
    rng = np.random.default_rng(1)
    values = (rng.standard_normal(4000) * 10.0 ** rng.integers(-9, 5, 4000)).astype(np.float32)
    halves = np.arange(0, 0x7C00, 37, dtype=np.uint16).view(np.float16).astype(np.float32)
    # Halves between two neighbors, the smallest and largest numbers, and zeros of both signs.
    ties = (halves[:-1] + halves[1:]) / 2
    edges = np.array([0.0, -0.0, 65504.0, 65519.0, 6e-8, 2.9e-8, -6.1e-5], np.float32)
    values = np.concatenate([values, halves, ties, edges]).astype(np.float32)
    values = values[np.abs(values) < 65520]
    made = ask(verb="table", values=values.tolist())
    assert made["float16"] == bits(values[:, None], "float16")
    assert made["bfloat16"] == bits(values[:, None], "bfloat16")


def test_the_share_of_the_cache_is_python_s(ask: Ask) -> None:
    for free, reserved in ((10e9, 4e9), (10e9, 0), (1e9, 0.5e9)):
        made = ask(verb="fraction", free=free, reserved=reserved)["fraction"]
        assert made == pytest.approx(kv_fraction(int(free), int(reserved)), abs=1e-4)
    answer = ask(verb="fraction", free=1e9, reserved=2e9)
    assert answer["status"] == UnsuitableError.exit_code
    assert "1.00 GB of device memory are free" in answer["message"]


def test_updates_come_in_order_and_waits_without_any_are_repeated(ask: Ask) -> None:
    script = [None, {"tokens": [4]}, None, {"tokens": [5, 6]}, {"final": True}]
    answer = ask(verb="follow", script=script)
    assert answer == {"number": 3, "updates": [[4], [5, 6], []], "status": 0, "cancelled": 0}


def test_an_error_of_the_executor_is_a_failure(ask: Ask) -> None:
    answer = ask(verb="follow", script=[{"tokens": [4]}, {"error": "no blocks"}])
    assert answer["status"] == 1
    assert answer["message"] == "TensorRT-LLM failed on a request: no blocks"
    assert (answer["updates"], answer["cancelled"]) == ([[4]], 1)


@pytest.mark.parametrize("said", [None, {"tokens": [5]}])
def test_a_cancelled_request_gets_nothing_more(ask: Ask, said: dict[str, Any] | None) -> None:
    answer = ask(verb="follow", script=[{"tokens": [4]}, said, {"tokens": [6]}], cancel_at=1)
    assert (answer["status"], answer["updates"], answer["cancelled"]) == (130, [[4]], 1)


def expected_logits(ids: list[int], positions: list[int], visual: np.ndarray) -> list[float]:
    """What the plan of host_plan.hpp makes of a prompt as a whole."""
    rows_SD = np.outer(ids, np.arange(2, 2 + HIDDEN))
    rows_SD[positions] = visual
    weights_S = np.arange(1, len(ids) + 1)
    total = (weights_S @ rows_SD).sum() * sum(range(1, 2 * LAYERS + 1))
    return [float(total * (i + 1)) for i in range(VOCABULARY)]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("piece", [1, 3, 16])
def test_pieces_single_tokens_and_visual_tokens_reach_their_places(
    ask: Ask, in_place: bool, piece: int
) -> None:
    ids, positions = [3, 0, 0, 9, 4, 0, 6], [1, 2, 5]
    visual = np.random.default_rng(2).integers(-9, 9, (3, HIDDEN))
    steps = [ids, [2], [7], [1], [5]]
    answer = ask(
        verb="plan",
        in_place=in_place,
        context=16,
        piece=piece,
        capacity=11,
        steps=steps,
        positions=positions,
        visual=visual.reshape(-1).tolist(),
    )
    seen: list[int] = []
    for step, logits in zip(steps, answer["logits"], strict=True):
        seen += step
        assert logits == expected_logits(seen, positions, visual)
    # A plan that writes in place has caches of the whole context alone.
    assert answer["capacity"] == (16 if in_place or piece == 16 else 11)
    assert answer["captured"] >= 1


def test_more_tokens_than_the_cache_holds_are_refused(ask: Ask) -> None:
    line = {"verb": "plan", "in_place": False, "context": 8, "piece": 2, "positions": [], "visual": []}
    assert (
        "5 tokens do not fit into a cache of 4"
        in ask(**line, capacity=4, steps=[[1, 2, 3, 4], [5]])["message"]
    )
    assert "9 tokens do not fit into a context of 8" in ask(**line, capacity=9, steps=[[1]])["message"]
