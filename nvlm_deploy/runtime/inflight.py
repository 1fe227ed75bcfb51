"""Generation by an engine that schedules requests itself: tokens come in, text goes out.

All requests of a batch are in flight together, beside those of other threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nvlm_deploy.backends.protocol import InflightSession, TokenRequest, TokenUpdate
from nvlm_deploy.errors import UsageError
from nvlm_deploy.runtime.answer import Answer
from nvlm_deploy.runtime.encoder import ImageEncoder
from nvlm_deploy.runtime.prepare import Prepared
from nvlm_deploy.runtime.timings import StageTimer


class InflightGenerator:
    """Answers a batch with a session that samples on its device."""

    def __init__(self, encoder: ImageEncoder, session: InflightSession) -> None:
        self._encoder, self._session = encoder, session

    def steps(
        self, prepared: Sequence[Prepared], answers: Sequence[Answer], timer: StageTimer
    ) -> Iterator[list[str]]:
        """Submit all requests, then yield each row's new text as its tokens come.

        Requests that end early, by a stop string or because nobody reads on, are canceled.

        Raises:
            UsageError: a request asks for logits, which do not leave the device.
        """
        if any(p.request.top_logits for p in prepared):
            raise UsageError(
                "this engine gives tokens and no logits",
                hint="leave top_logits out, or verify with its probes",
            )
        with timer.stage("vision"):
            requests = [self._token_request(p, answer) for p, answer in zip(prepared, answers, strict=True)]
        numbers: list[int] = []
        running: set[int] = set()
        try:
            for row, request in enumerate(requests):
                numbers.append(self._session.submit(request))
                running.add(row)
            while running:
                stage = "decode" if "first_token" in timer.stages_ms else "prefill"
                pieces = [""] * len(numbers)
                with timer.stage(stage):
                    for row in sorted(running):
                        update = self._session.next_update(numbers[row])
                        pieces[row] = _accept(answers[row], update)
                        if update.final or answers[row].finish_reason:
                            running.discard(row)
                            self._settle(numbers[row], update)
                timer.stages_ms.setdefault("first_token", timer.elapsed_ms())
                yield pieces
        finally:
            for row in running:
                self._session.cancel(numbers[row])

    def _settle(self, number: int, update: TokenUpdate) -> None:
        if not update.final:
            self._session.cancel(number)

    def _token_request(self, prepared: Prepared, answer: Answer) -> TokenRequest:
        tokens = [self._encoder.encode(image).visual for image in prepared.images]
        sampling = prepared.request.sampling
        return TokenRequest(
            input_ids=prepared.prompt.input_ids,
            visual_positions=prepared.prompt.visual_positions,
            tiles=tuple(image.tiles for image in prepared.images),
            visual_tokens=np.concatenate(tokens) if tokens else None,
            max_new_tokens=prepared.max_new_tokens,
            end_id=answer.end_id,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )


def _accept(answer: Answer, update: TokenUpdate) -> str:
    """Take tokens until the answer is finished; an engine that stops early has seen the end of the turn."""
    text = ""
    for token in update.tokens:
        if not answer.finish_reason:
            text += answer.accept_token(token)
    if update.final and not answer.finish_reason:
        text += answer.end()
    return text
