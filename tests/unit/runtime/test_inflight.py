"""Engines that drive themselves, against the step-wise engine of the same bundle.

The session here schedules requests as an executor does, and reads a prompt table through ids behind the
vocabulary; its numbers are those of a real ONNX Runtime decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvlm_deploy import Engine
from nvlm_deploy.backends.protocol import (
    DecoderSession,
    InflightSession,
    SessionOptions,
    TokenRequest,
    TokenUpdate,
)
from nvlm_deploy.backends.tensorrt_llm.interface import V1
from nvlm_deploy.backends.tensorrt_llm.prompt_table import embedding_table
from nvlm_deploy.backends.tensorrt_llm.requests import EngineFacts, assemble
from nvlm_deploy.errors import UsageError
from nvlm_deploy.pipeline.engine import build_engine_bundle
from nvlm_deploy.pipeline.plan import BuildRequest, plan_engine
from nvlm_deploy.runtime import Request, TextStream
from nvlm_deploy.runtime.bundle import Bundle, open_sessions
from nvlm_deploy.runtime.image_cache import ImageCache

QUESTION = "What is the total?"


class TableSession:
    """Answers greedily; of a prompt it sees nothing but ids and the table."""

    def __init__(self, decoder: DecoderSession, facts: EngineFacts) -> None:
        self._decoder, self._facts = decoder, facts
        self.running: dict[int, Iterator[TokenUpdate]] = {}
        self.canceled: list[int] = []
        self._count = 0

    @property
    def context_length(self) -> int:
        return self._decoder.context_length

    def submit(self, request: TokenRequest) -> int:
        self._count += 1
        self.running[self._count] = self._answer(request)
        return self._count

    def next_update(self, number: int) -> TokenUpdate:
        return next(self.running[number])

    def cancel(self, number: int) -> None:
        self.canceled.append(number)
        del self.running[number]

    def close(self) -> None:
        self.running.clear()

    def _answer(self, request: TokenRequest) -> Iterator[TokenUpdate]:
        parts = assemble(request, self._facts, V1)
        ids = np.array(parts.request["input_token_ids"])
        places = np.flatnonzero(ids >= self._facts.vocab_size)
        rows, index = None, None
        if request.visual_tokens is not None:
            table = embedding_table(request.visual_tokens, self._facts.dtype).float().numpy()
            rows = table[ids[places] - self._facts.vocab_size]
            index = np.column_stack([np.zeros_like(places), places])
        cache = self._decoder.new_cache(1, self.context_length)
        text_ids = np.where(ids < self._facts.vocab_size, ids, 0)
        logits = self._decoder.run(text_ids[None], np.array([len(ids)], np.int32), cache, rows, index)
        for left in range(parts.request["max_tokens"] - 1, -1, -1):
            token = int(logits[0].argmax())
            yield TokenUpdate((token,), final=left == 0 or token == request.end_id)
            logits = self._decoder.run(np.array([[token]]), np.ones(1, np.int32), cache)


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("inflight") / "bundle"
    request = BuildRequest(tiny_checkpoint, "fp32", "cpu-x86", output)
    return Bundle.open(build_engine_bundle(plan_engine(request)).bundle)


@pytest.fixture
def session(bundle: Bundle) -> TableSession:
    _, decoder = open_sessions(bundle, SessionOptions(threads=1))
    language = bundle.config.language
    per_tile = bundle.config.visual_tokens_per_tile
    rows = 14 * per_tile
    context = bundle.manifest.context
    facts = EngineFacts(language.vocab_size, context, 2, rows, per_tile, "float16", 2 * context, 0, True)
    return TableSession(decoder, facts)


@pytest.fixture
def engine(bundle: Bundle, session: TableSession) -> Engine:
    vision, _ = open_sessions(bundle, SessionOptions(threads=1))
    assert isinstance(session, InflightSession)
    return Engine(bundle, vision, session, ImageCache(1 << 20))


def picture(seed: int, size: tuple[int, int] = (120, 180)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_batch_in_flight_answers_as_step_by_step(bundle: Bundle, engine: Engine) -> None:
    requests = [
        Request(QUESTION, [picture(1)], max_new_tokens=9),
        Request("<image> or <image>?", [picture(2), picture(3, (56, 56))], max_new_tokens=4),
        Request("No image at all.", max_new_tokens=6),
    ]
    expected = Engine.open(bundle.directory, threads=1).generate_batch(requests)
    results = engine.generate_batch(requests)
    # The table is FP16 and the step-wise engine's visual tokens are FP32: random weights may tip a tie.
    assert [r.output_ids for r in results] == [r.output_ids for r in expected]
    assert [r.text for r in results] == [r.text for r in expected]
    assert [r.finish_reason for r in results] == [r.finish_reason for r in expected]
    assert {"vision", "prefill", "first_token", "decode", "total"} <= set(results[0].timings_ms)


def test_a_stream_is_the_whole_answer(engine: Engine) -> None:
    whole = engine.generate(QUESTION, [picture(1)], max_new_tokens=12)
    stream = engine.generate(QUESTION, [picture(1)], max_new_tokens=12, stream=True)
    pieces = list(stream)
    assert "".join(pieces) == whole.text == stream.result.text
    assert engine.image_cache.hits == 1


def test_a_stop_string_cancels_the_request(engine: Engine, session: TableSession) -> None:
    whole = engine.generate(QUESTION, [picture(1)], max_new_tokens=12)
    assert session.canceled == []
    stop = whole.text[2:4]
    cut = engine.generate(QUESTION, [picture(1)], max_new_tokens=12, stop=[stop])
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert cut.finish_reason == "stop"
    assert len(session.canceled) == 1


def test_a_stream_that_nobody_reads_on_is_canceled(engine: Engine, session: TableSession) -> None:
    stream: TextStream = engine.generate(QUESTION, max_new_tokens=30, stream=True)
    next(stream)
    del stream
    assert session.canceled == [1]


def test_what_was_submitted_is_canceled_when_another_request_does_not_fit(
    engine: Engine, session: TableSession
) -> None:
    def refuse(request: TokenRequest) -> int:
        raise UsageError("too long")

    number = session.submit
    calls = iter([number, refuse])
    session.submit = lambda request: next(calls)(request)  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="too long"):
        engine.generate_batch([Request(QUESTION), Request(QUESTION)])
    assert session.canceled == [1]


def test_logits_do_not_leave_the_device(engine: Engine) -> None:
    with pytest.raises(UsageError, match="no logits"):
        engine.generate(QUESTION, top_logits=3)
