"""The engine: a bundle opened for generation.

from nvlm_deploy import Engine

engine = Engine.open("bundle")
print(engine.generate("What is the total?", images=["receipt.png"]).text)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, overload

from nvlm_deploy.backends.protocol import (
    DecoderSession,
    InflightSession,
    SessionOptions,
    TileSession,
    VisionSession,
)
from nvlm_deploy.config.verified import require_passed
from nvlm_deploy.errors import CancelledError, UsageError
from nvlm_deploy.preprocess.images import ImageSource
from nvlm_deploy.preprocess.messages import Message
from nvlm_deploy.preprocess.prompt import Prompt
from nvlm_deploy.preprocess.tiles import TiledImage, preprocess_images
from nvlm_deploy.runtime.answer import Answer
from nvlm_deploy.runtime.bundle import Bundle, open_engine, open_tiles
from nvlm_deploy.runtime.encoder import ImageEncoder
from nvlm_deploy.runtime.image_cache import CacheFigures, ImageCache
from nvlm_deploy.runtime.inflight import InflightGenerator
from nvlm_deploy.runtime.prepare import Prepared, prepare
from nvlm_deploy.runtime.result import Request, Result, TextStream
from nvlm_deploy.runtime.sampling import Sampling
from nvlm_deploy.runtime.stepwise import StepwiseGenerator
from nvlm_deploy.runtime.timings import StageTimer

Runtime = Literal["python", "native"]

DEFAULT_IMAGE_CACHE_BYTES = 256 << 20


class Engine:
    """Answers prompts about images; greedy output is deterministic. Made by `Engine.open`."""

    def __init__(
        self,
        bundle: Bundle,
        vision: VisionSession,
        decoder: DecoderSession | InflightSession,
        image_cache: ImageCache,
        tiles: TileSession | None = None,
    ) -> None:
        """`tiles`: for NVLM-X and NVLM-H."""
        self.bundle = bundle
        self.image_cache: CacheFigures = image_cache
        encoder = self.encoder = ImageEncoder(bundle.config, vision, tiles, image_cache)
        self._generator: StepwiseGenerator | InflightGenerator
        if isinstance(decoder, InflightSession):
            self._generator = InflightGenerator(encoder, decoder)
        else:
            self._generator = StepwiseGenerator(encoder, decoder)

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
        runtime: Runtime = "python",
    ) -> Engine:
        """Open an engine bundle.

        Args:
            bundle: directory that `nvlm-build engine` wrote.
            device: `cpu`; `cuda` or `cuda:N` for a GPU, where the backend can use one.
            threads: of one operator; all cores by default.
            memory: `fast` packs weights for speed; `mapped` leaves them in the file and the page cache.
            verify_digests: hold every file against its SHA-256; without it only sizes are checked.
            image_cache_bytes: limit of the cache of what the decoder takes of images; 0 turns it off.
            require_verified: refuse a bundle that has not passed `nvlm-build verify`.
            runtime: `python`, or `native` for libnvlm (docs/embedding.md), which gives the same answers.

        Raises:
            NvlmError: no bundle, a changed file, or a runtime that does not fit the manifest.
            UnsuitableError: the device or the native runtime is not there, or cannot run all of the engine.
            VerificationError: the bundle has not been verified, or has not passed; or a field of its manifest
                does not hold.
        """
        options = SessionOptions(threads=threads, memory=memory, device=device)
        if runtime == "native":
            from nvlm_deploy.runtime.native.engine import open_native

            return open_native(Path(bundle), options, verify_digests, image_cache_bytes, require_verified)
        if runtime != "python":
            raise UsageError(f"there is no runtime '{runtime}'", hint="known: native, python")
        opened = Bundle.open(Path(bundle), verify_digests=verify_digests)
        if require_verified:
            require_passed(opened.directory, opened.manifest)
        vision, decoder = open_engine(opened, options)
        tiles = open_tiles(opened, options)
        return cls(opened, vision, decoder, ImageCache(image_cache_bytes), tiles)

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
            return self._stream(request)
        (result,) = self.generate_batch([request])
        return result

    def generate_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Answer several requests together, each as it would be answered alone."""
        if not requests:
            return []
        timer = StageTimer()
        prepared = prepare(self.bundle, requests, timer)
        answers = self._new_answers(prepared)
        for _ in self._generator.steps(prepared, answers, timer):
            pass
        return _results(prepared, answers, timer)

    def preprocess(
        self, prompt: str | Sequence[Message], images: Sequence[ImageSource] = ()
    ) -> tuple[Prompt, tuple[TiledImage, ...]]:
        """Return the token ids and tiles that `generate` would see."""
        (prepared,) = prepare(self.bundle, [Request(prompt, tuple(images))], StageTimer())
        return prepared.prompt, prepared.images

    def prefetch(self, image: ImageSource) -> None:
        """Encode an image before it is asked about: requests find it in the cache.

        Raises:
            UsageError, NvlmError: it is no image, or cannot be read.
        """
        (tiled,) = preprocess_images([image], self.bundle.config)
        self.encoder.encode(tiled)

    def _stream(self, request: Request) -> TextStream:
        cancelled = threading.Event()
        return TextStream(self._pieces(request, cancelled), cancelled.set)

    def _pieces(self, request: Request, cancelled: threading.Event) -> Iterator[str | Result]:
        timer = StageTimer()
        prepared = prepare(self.bundle, [request], timer)
        answers = self._new_answers(prepared)
        for pieces in self._generator.steps(prepared, answers, timer):
            if cancelled.is_set():
                raise CancelledError("the request was cancelled")
            if pieces[0]:
                yield pieces[0]
        yield from _results(prepared, answers, timer)

    def _new_answers(self, prepared: Sequence[Prepared]) -> list[Answer]:
        return [Answer(p.request, self.bundle.tokenizer, p.max_new_tokens) for p in prepared]


def _results(prepared: Sequence[Prepared], answers: Sequence[Answer], timer: StageTimer) -> list[Result]:
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
