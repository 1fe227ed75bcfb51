"""An engine that the native runtime has opened, with the interface of `Engine`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from nvlm_deploy.backends.protocol import SessionOptions
from nvlm_deploy.preprocess.images import ImageSource
from nvlm_deploy.runtime.bundle import Bundle
from nvlm_deploy.runtime.engine import Engine
from nvlm_deploy.runtime.native import abi
from nvlm_deploy.runtime.native.generation import Generation
from nvlm_deploy.runtime.native.images import Images, NativeImage, Tiles
from nvlm_deploy.runtime.native.library import Cancellation, Opened, load_library, onnxruntime_library
from nvlm_deploy.runtime.result import Request, Result, TextStream

# Each request in flight has keys and values of its own.
_REQUESTS_AT_ONCE = 8


class NativeImageCache:
    """Figures of the native cache of images."""

    def __init__(self, engine: Opened) -> None:
        self._engine = engine

    @property
    def hits(self) -> int:
        return int(self._info().hits)

    @property
    def misses(self) -> int:
        return int(self._info().misses)

    def clear(self) -> None:
        """Forget all images."""
        self._engine.call("nvlm_cache_clear")

    def _info(self) -> abi.CacheInfo:
        info = abi.CacheInfo()
        self._engine.call("nvlm_cache_get_info", ctypes.byref(info))
        return info


class NativeEngine(Engine):
    """Answers as `Engine` does, by libnvlm. Any number of threads may use one."""

    def __init__(self, directory: Path, options: abi.EngineOptions) -> None:
        """Open a bundle; made by `Engine.open`.

        Raises:
            UnsuitableError: there is no libnvlm that fits, or it cannot run this engine.
            NvlmError, VerificationError: as `Engine.open`.
        """
        self._directory = directory
        self._opened = Opened(load_library(), directory, options)
        self.image_cache = NativeImageCache(self._opened)
        info = abi.EngineInfo()
        self._opened.call("nvlm_engine_get_info", ctypes.byref(info))
        self._tile_size = int(info.tile_size)

    @cached_property
    def bundle(self) -> Bundle:  # type: ignore[override]
        """The bundle as Python reads it, when it is asked for; its files have been checked natively."""
        return Bundle.open(self._directory, verify_digests=False)

    def generate_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Answer several requests at the same time, each as it would be answered alone.

        Timings are each request's own. The first failure ends all of them.
        """
        if not requests:
            return []
        generations = [self._generation(request) for request in requests]
        # In threads, because Ctrl-C does not reach a thread that is inside of C.
        with ThreadPoolExecutor(min(len(requests), _REQUESTS_AT_ONCE)) as pool:
            try:
                futures = [pool.submit(generation.result) for generation in generations]
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            finally:
                for generation in generations:
                    generation.cancellation.cancel()
        return [self._result(g, future.result()) for g, future in zip(generations, futures, strict=True)]

    def prefetch(self, image: ImageSource) -> None:
        """Encode an image before it is asked about: requests find it in the cache."""
        images = Images([image])
        self._opened.call("nvlm_cache_prefetch", images.array, None)

    def _stream(self, request: Request) -> TextStream:
        cancellation = Cancellation(self._opened.library)
        return TextStream(self._native_pieces(request, cancellation), cancellation.cancel)

    def _native_pieces(self, request: Request, cancellation: Cancellation) -> Iterator[str | Result]:
        generation = Generation(self._opened, request, cancellation)
        for event in generation.events():
            yield event if isinstance(event, str) else self._result(generation, event)

    def _generation(self, request: Request) -> Generation:
        return Generation(self._opened, request, Cancellation(self._opened.library))

    def _result(self, generation: Generation, answer: dict[str, Any]) -> Result:
        """`answer`: nvlm_result_json."""
        images = []
        for index, report in enumerate(answer["images"]):
            cut = partial(self._cut, generation, index, report["tiles"])
            images.append(NativeImage(tuple(report["grid"]), tuple(report["crc32"]), cut))
        return Result(
            text=answer["text"],
            input_ids=tuple(answer["input_ids"]),
            output_ids=tuple(answer["output_ids"]),
            finish_reason=answer["finish_reason"],
            images=tuple(images),
            timings_ms=answer["timings_ms"],
            first_token_top=tuple((place["id"], place["logit"]) for place in answer["first_token_top"]),
        )

    def _cut(self, generation: Generation, index: int, count: int) -> Tiles:
        """Tiles of a request's image, uint8 [T, S, S, 3]; `count` is T."""
        tiles = np.empty((count, self._tile_size, self._tile_size, 3), dtype=np.uint8)
        buffer = tiles.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        image = ctypes.byref(generation.images.array[index])
        self._opened.call("nvlm_tile", image, buffer, tiles.nbytes, None, None, None)
        return tiles


def open_native(
    bundle: Path,
    options: SessionOptions,
    verify_digests: bool,
    image_cache_bytes: int,
    require_verified: bool,
) -> NativeEngine:
    """Open a bundle natively; arguments and errors are those of `Engine.open`."""
    native = abi.EngineOptions(
        threads=options.threads or 0,
        mapped=options.memory == "mapped",
        skip_digests=not verify_digests,
        require_verified=require_verified,
        image_cache_bytes=image_cache_bytes or -1,
        device=options.device.encode(),
        library=onnxruntime_library(),
    )
    return NativeEngine(bundle, native)
