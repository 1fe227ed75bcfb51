"""Run engines with ONNX Runtime, on the CPU or on a GPU.

Shapes: B rows, S new tokens per row, P logit positions, V visual tokens, D hidden size, T tiles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvlm_deploy.backends.onnxruntime.cache import OrtKvCache
from nvlm_deploy.backends.onnxruntime.library import device_memory, graph_facts, input_type, open_graph
from nvlm_deploy.backends.protocol import Float32, Int32, Int64, KvCache, SessionOptions
from nvlm_deploy.backends.step import Step, check_capacity
from nvlm_deploy.errors import NvlmError


class OrtVisionSession:
    """Tiles to visual tokens, one tile after the other: several at once are no faster on a CPU."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        self._session = open_graph(path, options)
        self.facts = graph_facts(self._session)
        self._tile_shape = tuple(self._session.get_inputs()[0].shape[1:])
        self._token_shape = tuple(self._session.get_outputs()[0].shape[1:])

    def encode(self, tiles: NDArray[np.uint8]) -> Float32:
        """See `VisionSession.encode`."""
        if tiles.dtype != np.uint8 or tiles.shape[1:] != self._tile_shape:
            raise NvlmError(
                f"tiles must be uint8 [tiles, {', '.join(map(str, self._tile_shape))}], "
                f"not {tiles.dtype} {list(tiles.shape)}"
            )
        tokens_TND = np.empty((len(tiles), *self._token_shape), np.float32)
        for index in range(len(tiles)):
            tile = np.ascontiguousarray(tiles[index : index + 1])
            tokens_TND[index] = self._session.run(None, {"tiles": tile})[0][0]
        return tokens_TND


class OrtDecoderSession:
    """Token ids and visual tokens to logits; keys and values are updated in place, on the device."""

    def __init__(self, path: Path, options: SessionOptions, changed: bytes | None = None) -> None:
        """Open the graph at `path`, or `changed` in its place, with the weights beside `path`."""
        self._session = open_graph(path, options, changed)
        self._memory = device_memory(self._session, options.device)
        self._piece = options.prefill_chunk
        self.facts = graph_facts(self._session)
        shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self._hidden_size = int(shapes["visual_tokens"][1])
        _, self._kv_heads, _, self._head_dim = shapes["past_key.0"]
        self._cache_type = input_type(self._session, "past_key.0")
        self._layers = sum(name.startswith("past_key.") for name in shapes)
        self._vocab_size = int(self._session.get_outputs()[0].shape[2])
        self._context_length = self.facts.context_length or 0

    @property
    def context_length(self) -> int:
        """Tokens per row that the engine was built for."""
        return self._context_length

    @property
    def vocab_size(self) -> int:
        """Number of logits per position."""
        return self._vocab_size

    def new_cache(self, batch: int, capacity: int) -> OrtKvCache:
        """Return an empty cache for `batch` rows of up to `capacity` tokens."""
        check_capacity(capacity, self._context_length)
        shape = (batch, self._kv_heads, capacity, self._head_dim)
        return OrtKvCache.empty(self._layers, shape, self._cache_type, self._memory)

    def run(
        self,
        input_ids: Int64,
        new_lengths: Int32,
        cache: KvCache,
        visual_tokens: Float32 | None = None,
        visual_index: Int64 | None = None,
        logit_positions: Int64 | None = None,
    ) -> Float32:
        """See `DecoderSession.run`."""
        if not isinstance(cache, OrtKvCache):
            raise TypeError("a cache belongs to the session that made it")
        step = Step.checked(
            input_ids,
            new_lengths,
            visual_tokens,
            visual_index,
            logit_positions,
            hidden_size=self._hidden_size,
            vocab_size=self._vocab_size,
        )
        before_B = cache.lengths.copy()
        step.check_room(cache)
        try:
            logits_BPV = self._run_rows(step, cache)
        except BaseException:
            cache.lengths[:] = before_B
            raise
        return logits_BPV[:, 0] if logit_positions is None else logits_BPV

    def _run_rows(self, step: Step, cache: OrtKvCache) -> Float32:
        """Run all rows at once where the attention kernel can, else one after the other.

        It takes several rows for first prompts and for single tokens, not for later chunks.
        """
        rows, width = step.ids_BS.shape
        if rows == 1:
            return self._run_pieces(step, cache)
        if width == 1 or (width <= self._piece and not cache.lengths.any()):
            return self._run_once(step, cache)
        return np.concatenate([self._run_pieces(step.row(b), cache.row(b)) for b in range(rows)])

    def _run_pieces(self, step: Step, cache: OrtKvCache) -> Float32:
        if step.ids_BS.shape[1] <= self._piece:
            return self._run_once(step, cache)
        logits_BPV = np.empty((*step.positions_BP.shape, self._vocab_size), np.float32)
        for piece, wanted_P in step.pieces(self._piece):
            logits_BPV[:, wanted_P] = self._run_once(piece, cache)
        return logits_BPV

    def _run_once(self, step: Step, cache: OrtKvCache) -> Float32:
        logits_BPV = np.empty((*step.positions_BP.shape, self._vocab_size), np.float32)
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": step.ids_BS,
            "past_lengths": cache.lengths,
            "new_lengths": step.new_B,
            "visual_tokens": step.visual_VD,
            "visual_index": step.index_V2,
            "logit_positions": step.positions_BP,
        }
        binding = cache.binding
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        place = (np.float32, logits_BPV.shape, logits_BPV.ctypes.data)
        binding.bind_output("logits", "cpu", 0, *place)
        self._session.run_with_iobinding(binding)
        cache.lengths += step.new_B
        return logits_BPV


open_vision, open_decoder = OrtVisionSession, OrtDecoderSession
