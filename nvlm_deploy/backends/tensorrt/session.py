"""Run plans of TensorRT and TensorRT-RTX. Not yet run on a GPU: tests run it on a device of host memory.

Shapes: B rows, S new tokens per row, P logit positions, V visual tokens, D hidden size, T tiles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvlm_deploy.backends.protocol import Float32, GraphFacts, Int64
from nvlm_deploy.backends.step import Step, check_capacity
from nvlm_deploy.backends.step_session import StepSession, check_tiles
from nvlm_deploy.backends.tensorrt.cache import CacheShape, DeviceKvCache
from nvlm_deploy.backends.tensorrt.cuda import Buffer, Device
from nvlm_deploy.backends.tensorrt.plan_file import Context, PlanFile
from nvlm_deploy.errors import NvlmError

_PREFILL, _DECODE = 0, 1
_TEXT = -1


class PlanVisionSession:
    """Tiles to visual tokens, as many tiles at once as the plan takes."""

    facts: GraphFacts | None = None

    def __init__(self, trt: Any, path: Path, device: Device) -> None:
        self._device = device
        plan = PlanFile(trt, path, device)
        self._context = plan.context(0)
        self._tile_shape, self._token_shape = plan.shape("tiles")[1:], plan.shape("visual_tokens")[1:]
        self._most = plan.largest("tiles")[0]
        self._tiles = Buffer(device, self._most * int(np.prod(self._tile_shape)))
        self._tokens = Buffer(device, self._most * int(np.prod(self._token_shape)) * 4)

    def encode(self, tiles: NDArray[np.uint8]) -> Float32:
        """See `VisionSession.encode`."""
        check_tiles(tiles, self._tile_shape)
        tokens_TND = np.empty((len(tiles), *self._token_shape), np.float32)
        for start in range(0, len(tiles), self._most):
            some = np.ascontiguousarray(tiles[start : start + self._most])
            self._context.bind("tiles", self._tiles.address, some.shape)
            self._context.bind("visual_tokens", self._tokens.address)
            self._device.upload(self._tiles.address, some)
            self._context.run()
            self._device.download(tokens_TND[start : start + len(some)], self._tokens.address)
            self._device.wait()
        return tokens_TND


class PlanDecoderSession(StepSession[DeviceKvCache]):
    """Token ids and visual tokens to logits.

    Prompts go through the first profile in pieces, single tokens through the second, if there is one, as a
    CUDA graph. Keys and values stay on the device: the plan writes them in place, or gives the new ones,
    which are copied behind the others.
    """

    cache_class = DeviceKvCache

    facts: GraphFacts | None = None

    def __init__(self, trt: Any, path: Path, device: Device) -> None:
        self._device, self._plan = device, PlanFile(trt, path, device)
        plan = self._plan
        self._in_place = "present_key.0" in plan.names
        _, kv_heads, context_length, head_dim = plan.largest("past_key.0")
        self._layers = sum(name.startswith("past_key.") for name in plan.names)
        self._cache = CacheShape(
            self._layers, kv_heads, context_length, head_dim, plan.itemsize("past_key.0")
        )
        self._static = plan.shape("past_key.0")[2] > 0
        self._hidden_size, self._vocab_size = plan.shape("visual_tokens")[1], plan.shape("logits")[2]
        self._max_rows, self._piece = plan.largest("input_ids")
        self._max_positions = plan.largest("logit_positions")[1]
        last = plan.profiles - 1
        self._contexts = [plan.context(min(profile, last)) for profile in (_PREFILL, _DECODE)]
        self._buffers = self._new_buffers()
        self._news = None if self._in_place else self._new_staging()

    @property
    def context_length(self) -> int:
        """Tokens per row that the engine was built for."""
        return self._cache.capacity

    def new_cache(self, batch: int, capacity: int) -> DeviceKvCache:
        """Return an empty cache for `batch` rows of at least `capacity` tokens.

        A plan that writes in place has caches of its whole context alone, and others at least a piece.
        """
        check_capacity(capacity, self.context_length)
        if batch > self._max_rows:
            raise NvlmError(
                f"{batch} rows are asked for, and this engine was built for {self._max_rows}",
                hint=f"build it with --set target.limits.max_batch={batch}",
            )
        room = self.context_length if self._static else max(capacity, self._piece)
        sizes = self._cache
        shape = CacheShape(sizes.layers, sizes.kv_heads, room, sizes.head_dim, sizes.itemsize)
        return DeviceKvCache.empty(self._device, shape, batch)

    def _run_rows(self, step: Step, cache: DeviceKvCache) -> Float32:
        """Run all rows at once if they fit, padding included, else one after the other in pieces."""
        rows, width = step.ids_BS.shape
        fits = int(cache.lengths.max()) + width <= cache.capacity
        if width <= self._piece and step.positions_BP.shape[1] <= self._max_positions and (rows == 1 or fits):
            return self._run_once(step, cache)
        alone = ((step, cache),) if rows == 1 else tuple((step.row(b), cache.row(b)) for b in range(rows))
        return np.concatenate([self._run_pieces(*each) for each in alone])

    def _run_pieces(self, step: Step, cache: DeviceKvCache) -> Float32:
        positions = step.positions_BP.shape[1]
        size = self._piece if positions <= self._max_positions else self._max_positions
        logits_BPV = np.empty((1, positions, self._vocab_size), np.float32)
        for piece, wanted_P in step.pieces(size):
            logits_BPV[:, wanted_P] = self._run_once(piece, cache)
        return logits_BPV

    def _run_once(self, step: Step, cache: DeviceKvCache) -> Float32:
        rows, width = step.ids_BS.shape
        wanted = step.positions_BP.shape[1]
        # No tensor is empty: a position that nobody asked for, a visual token that no row takes.
        positions_BP = step.positions_BP if wanted else np.zeros((rows, 1), np.int64)
        decodes = width == 1 and positions_BP.shape[1] == 1 and not len(step.visual_VD)
        context = self._contexts[_DECODE if decodes else _PREFILL]
        self._bind_cache(context, cache, width)
        for name, array in self._inputs(step, cache, positions_BP).items():
            buffer = self._buffers[name]
            self._device.upload(buffer.address, array)
            context.bind(name, buffer.address, array.shape)
        context.bind("logits", self._buffers["logits"].address)
        context.run_captured() if decodes else context.run()
        if self._news is not None:
            cache.append(self._device, self._news.address, width, step.new_B)
        logits_BPV = np.empty((rows, positions_BP.shape[1], self._vocab_size), np.float32)
        self._device.download(logits_BPV, self._buffers["logits"].address)
        self._device.wait()
        cache.lengths += step.new_B
        return logits_BPV[:, :wanted]

    def _inputs(self, step: Step, cache: DeviceKvCache, positions_BP: Int64) -> dict[str, NDArray[Any]]:
        visual_BS = np.full(step.ids_BS.shape, _TEXT, np.int64)
        visual_BS[step.index_V2[:, 0], step.index_V2[:, 1]] = np.arange(len(step.index_V2))
        none = np.zeros((1, self._hidden_size), np.float32)
        arrays: dict[str, NDArray[Any]] = {
            "input_ids": step.ids_BS,
            "visual_rows": visual_BS,
            "visual_tokens": step.visual_VD if len(step.visual_VD) else none,
            "past_lengths": cache.lengths,
            "new_lengths": step.new_B,
            "logit_positions": positions_BP,
        }
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    def _bind_cache(self, context: Context, cache: DeviceKvCache, width: int) -> None:
        shape, staged = cache.tensor_shape, 0
        for name, address in cache.addresses():
            context.bind(f"past_{name}", address, shape)
            if self._news is None:
                context.bind(f"present_{name}", address)
            else:
                context.bind(f"new_{name}", self._news.address + staged)
                staged += shape[0] * self._cache.row_bytes(width)

    def _new_buffers(self) -> dict[str, Buffer]:
        """Memory for the largest inputs and logits; every step uses the beginning of it."""
        plan = self._plan
        caches = ("past_key.", "past_value.")
        sizes = {
            name: int(np.prod(plan.largest(name))) * plan.itemsize(name)
            for name in plan.names
            if plan.is_input(name) and not name.startswith(caches)
        }
        sizes["logits"] = self._max_rows * self._max_positions * self._vocab_size * 4
        return {name: Buffer(self._device, size) for name, size in sizes.items()}

    def _new_staging(self) -> Buffer:
        tokens = 2 * self._layers * self._max_rows
        return Buffer(self._device, tokens * self._cache.row_bytes(self._piece))
