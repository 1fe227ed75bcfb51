"""The engine: a bundle opened for generation.

from nvlm_deploy import Engine

engine = Engine.open("bundle")
print(engine.generate("What is the total?", images=["receipt.png"]).text)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from nvlm_deploy.backends.protocol import DecoderSession, SessionOptions, VisionSession
from nvlm_deploy.config.verified import require_passed
from nvlm_deploy.errors import UsageError
from nvlm_deploy.preprocess.images import ImageSource
from nvlm_deploy.preprocess.messages import Message, gather_images
from nvlm_deploy.preprocess.prompt import Prompt
from nvlm_deploy.preprocess.tiles import TiledImage, preprocess_images
from nvlm_deploy.runtime.answer import Answer
from nvlm_deploy.runtime.bundle import Bundle, open_sessions
from nvlm_deploy.runtime.image_cache import ImageCache, VisualTokens
from nvlm_deploy.runtime.result import Request, Result, TextStream
from nvlm_deploy.runtime.sampling import Sampling
from nvlm_deploy.runtime.timings import StageTimer

DEFAULT_IMAGE_CACHE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request whose images are tiled and whose prompt is tokenized."""

    request: Request
    images: tuple[TiledImage, ...]
    prompt: Prompt
    max_new_tokens: int


class Engine:
    """Answers prompts about images; greedy output is deterministic. Made by `Engine.open`."""

    def __init__(
        self, bundle: Bundle, vision: VisionSession, decoder: DecoderSession, image_cache: ImageCache
    ) -> None:
        self.bundle = bundle
        self.image_cache = image_cache
        self._vision, self._decoder = vision, decoder

    @classmethod
    def open(
        cls,
        bundle: str | PathLike[str],
        *,
        device: str = "cpu",
        threads: int | None = None,
        memory: Literal["fast", "mapped"] = "fast",
        verify_digests: bool = True,
        image_cache_bytes: int = DEFAULT_IMAGE_CACHE_BYTES,
        require_verified: bool = False,
    ) -> Engine:
        """Open an engine bundle.

        Args:
            bundle: directory that `nvlm-build engine` wrote.
            device: `cpu`; `cuda` or `cuda:N` for a GPU, where the backend can use one.
            threads: of one operator; all cores by default.
            memory: `fast` packs weights for speed; `mapped` leaves them in the file and the page cache.
            verify_digests: hold every file against its SHA-256; without it only sizes are checked.
            image_cache_bytes: limit of the cache of visual tokens; 0 turns it off.
            require_verified: refuse a bundle that has not passed `nvlm-build verify`.

        Raises:
            NvlmError: no bundle, a changed file, or a runtime that does not fit the manifest.
            UnsuitableError: the device is not there, or cannot run all of the engine.
            VerificationError: the bundle has not been verified, or has not passed; or a field of its manifest
                does not hold.
        """
        opened = Bundle.open(Path(bundle), verify_digests=verify_digests)
        if require_verified:
            require_passed(opened.directory, opened.manifest)
        options = SessionOptions(threads=threads, memory=memory, device=device)
        vision, decoder = open_sessions(opened, options)
        return cls(opened, vision, decoder, ImageCache(image_cache_bytes))

    @overload
    def generate(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[ImageSource] = ...,
        *,
        max_new_tokens: int = ...,
        stop: Sequence[str] = ...,
        seed: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        top_logits: int = ...,
        stream: Literal[False] = ...,
    ) -> Result: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[ImageSource] = ...,
        *,
        max_new_tokens: int = ...,
        stop: Sequence[str] = ...,
        seed: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        top_logits: int = ...,
        stream: Literal[True],
    ) -> TextStream: ...

    def generate(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[ImageSource] = (),
        *,
        max_new_tokens: int = 1024,
        stop: Sequence[str] = (),
        seed: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        top_logits: int = 0,
        stream: bool = False,
    ) -> Result | TextStream:
        """Answer one prompt: a string or a list of messages, with images; see `Request` and `Sampling`.

        With `stream` the answer comes piece by piece: iterate over what is returned, then read its `result`.

        Raises:
            UsageError: images that do not fit the prompt, a prompt longer than the context, bad settings.
            NvlmError: an image that cannot be read.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        request = Request(prompt, tuple(images), max_new_tokens, tuple(stop), sampling, top_logits)
        if stream:
            return TextStream(self._stream(request))
        (result,) = self.generate_batch([request])
        return result

    def generate_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Answer several requests together, each as it would be answered alone."""
        if not requests:
            return []
        timer = StageTimer()
        prepared = self._prepare(requests, timer)
        answers = self._new_answers(prepared)
        for _ in self._steps(prepared, answers, timer):
            pass
        return _results(prepared, answers, timer)

    def preprocess(
        self, prompt: str | Sequence[Message], images: Sequence[ImageSource] = ()
    ) -> tuple[Prompt, tuple[TiledImage, ...]]:
        """Return the token ids and tiles that `generate` would see."""
        (prepared,) = self._prepare([Request(prompt, tuple(images))], StageTimer())
        return prepared.prompt, prepared.images

    def _stream(self, request: Request) -> Iterator[str | Result]:
        timer = StageTimer()
        prepared = self._prepare([request], timer)
        answers = self._new_answers(prepared)
        for pieces in self._steps(prepared, answers, timer):
            if pieces[0]:
                yield pieces[0]
        yield from _results(prepared, answers, timer)

    def _prepare(self, requests: Sequence[Request], timer: StageTimer) -> list[_Prepared]:
        prepared = []
        for request in requests:
            with timer.stage("tile"):
                sources = gather_images(request.prompt, request.images)
                images = tuple(preprocess_images(sources, self.bundle.config))
            with timer.stage("tokenize"):
                prompt = self.bundle.prompts.build(request.prompt, [len(image) for image in images])
            limit = self._room(prompt, request.max_new_tokens)
            prepared.append(_Prepared(request, images, prompt, limit))
        return prepared

    def _room(self, prompt: Prompt, max_new_tokens: int) -> int:
        """Number of tokens that may follow `prompt` in the engine's context."""
        context = self.bundle.manifest.context
        if len(prompt) >= context:
            raise UsageError(
                f"the prompt has {len(prompt)} tokens and the engine's context is {context}",
                hint="shorten the prompt, send fewer or less elongated images, or rebuild the engine with "
                "a larger context: --set target.max_context=N",
            )
        return min(max_new_tokens, context - len(prompt))

    def _new_answers(self, prepared: Sequence[_Prepared]) -> list[Answer]:
        return [Answer(p.request, self.bundle.tokenizer, p.max_new_tokens) for p in prepared]

    def _steps(
        self, prepared: Sequence[_Prepared], answers: Sequence[Answer], timer: StageTimer
    ) -> Iterator[list[str]]:
        """Prefill, then decode until every answer is finished; yield each row's new text per step."""
        with timer.stage("vision"):
            visual_tokens, visual_index = self._visual_inputs(prepared)
        capacity = max(len(p.prompt) + p.max_new_tokens for p in prepared)
        cache = self._decoder.new_cache(len(prepared), capacity)
        with timer.stage("prefill"):
            input_ids, lengths = _right_padded([p.prompt.input_ids for p in prepared])
            logits = self._decoder.run(input_ids, lengths, cache, visual_tokens, visual_index)
        while True:
            yield [answer.accept(row) for answer, row in zip(answers, logits, strict=True)]
            timer.stages_ms.setdefault("first_token", timer.elapsed_ms())
            if all(answer.finish_reason for answer in answers):
                return
            with timer.stage("decode"):
                step_ids = np.array([[answer.last_id] for answer in answers], dtype=np.int64)
                logits = self._decoder.run(step_ids, np.ones(len(answers), dtype=np.int32), cache)
                # A finished row stands still: its cache must not run over while others go on.
                cache.lengths[[bool(answer.finish_reason) for answer in answers]] -= 1

    def _visual_inputs(
        self, prepared: Sequence[_Prepared]
    ) -> tuple[VisualTokens | None, npt.NDArray[np.int64] | None]:
        """Visual tokens [V, D] of all rows and their places (row, position), int64 [V, 2]."""
        tokens = [self._encode(image) for p in prepared for image in p.images]
        if not tokens:
            return None, None
        places = [
            np.column_stack([np.full(len(p.prompt.visual_positions), row), p.prompt.visual_positions])
            for row, p in enumerate(prepared)
        ]
        return np.concatenate(tokens), np.concatenate(places).astype(np.int64)

    def _encode(self, image: TiledImage) -> VisualTokens:
        """Visual tokens [V, D] of one image, from the cache if its tiles have been seen."""
        key = self.image_cache.key(image.tiles)
        tokens = self.image_cache.get(key)
        if tokens is None:
            encoded = self._vision.encode(image.tiles)
            tokens = encoded.reshape(-1, encoded.shape[-1])
            self.image_cache.put(key, tokens)
        return tokens


def _right_padded(
    rows: Sequence[npt.NDArray[np.int64]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    padded = np.zeros((len(rows), lengths.max()), dtype=np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded, lengths


def _results(prepared: Sequence[_Prepared], answers: Sequence[Answer], timer: StageTimer) -> list[Result]:
    timings = dict(timer.stages_ms)
    steps = max(len(answer.output_ids) for answer in answers) - 1
    timings.setdefault("decode", 0.0)
    timings["per_token"] = timings["decode"] / steps if steps > 0 else 0.0
    timings["total"] = timer.elapsed_ms()
    return [
        Result(
            text=answer.text,
            input_ids=tuple(int(i) for i in p.prompt.input_ids),
            output_ids=tuple(answer.output_ids),
            finish_reason=answer.finish_reason or "length",
            images=p.images,
            timings_ms=timings,
            first_token_top=answer.first_token_top,
        )
        for p, answer in zip(prepared, answers, strict=True)
    ]
