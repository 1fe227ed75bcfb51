"""What goes into a generation and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nvlm_deploy.errors import UsageError
from nvlm_deploy.preprocess.images import ImageSource
from nvlm_deploy.preprocess.messages import Message
from nvlm_deploy.preprocess.tiles import TiledImage
from nvlm_deploy.runtime.sampling import Sampling

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, its images and how to answer it.

    Attributes:
        prompt: a plain string, in which `<image>` marks an image's place, or a list of messages.
        images: paths, bytes, PIL images or uint8 arrays, in order.
        max_new_tokens: upper limit; the engine's context may end the answer earlier.
        stop: strings that end the answer; they are not part of it.
        top_logits: how many of the first token's largest logits to report.
    """

    prompt: str | Sequence[Message]
    images: Sequence[ImageSource] = ()
    max_new_tokens: int = 1024
    stop: Sequence[str] = ()
    sampling: Sampling = field(default_factory=Sampling)
    top_logits: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if isinstance(self.stop, str) or not all(self.stop):
            raise UsageError("stop must be a list of strings that are not empty")


@dataclass(frozen=True, slots=True)
class Result:
    """An answer.

    Attributes:
        text: the answer without special tokens, up to a stop string.
        input_ids: the expanded prompt.
        output_ids: the generated tokens, without the end-of-turn token.
        finish_reason: `stop` for the end of the turn or a stop string, `length` for a limit.
        images: the tiles of each image.
        timings_ms: milliseconds by stage: `tile`, `tokenize`, `vision`, `prefill`, `first_token` (all of
            these together), `decode`, `per_token`, `total`. In a batch they are the batch's.
        first_token_top: (id, logit) of the first position, as many as were asked for.
    """

    text: str
    input_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    finish_reason: FinishReason
    images: tuple[TiledImage, ...]
    timings_ms: dict[str, float]
    first_token_top: tuple[tuple[int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "text": self.text,
            "input_ids": list(self.input_ids),
            "output_ids": list(self.output_ids),
            "finish_reason": self.finish_reason,
            "images": [image.report() for image in self.images],
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings_ms.items()},
            "first_token_top": [{"id": i, "logit": logit} for i, logit in self.first_token_top],
        }


class TextStream(Iterator[str]):
    """Pieces of an answer as they are generated; `result` is there when the last one has been read."""

    def __init__(self, pieces: Iterator[str | Result], cancel: Callable[[], None]) -> None:
        """`cancel` ends the request; any thread may call it."""
        self._pieces, self._cancel = pieces, cancel
        self._result: Result | None = None

    def __next__(self) -> str:
        for piece in self._pieces:
            if isinstance(piece, str):
                return piece
            self._result = piece
        raise StopIteration

    def cancel(self) -> None:
        """End the request, from any thread: the next piece is a CancelledError.

        The native runtime ends in the middle of a step, and pieces that are there already still come.
        """
        self._cancel()

    @property
    def result(self) -> Result:
        """The whole answer.

        Raises:
            UsageError: the stream has not been read to its end.
        """
        if self._result is None:
            raise UsageError("the stream has not been read to its end", hint="iterate over it first")
        return self._result
