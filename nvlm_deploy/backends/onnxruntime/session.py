"""Run engines with ONNX Runtime, on the CPU or on a GPU.

Shapes: B rows, S new tokens per row, P logit positions, V visual tokens, D hidden size, T tiles, N visual
tokens of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvlm_deploy.backends.onnxruntime.cache import OrtKvCache
from nvlm_deploy.backends.onnxruntime.library import device_memory, graph_facts, input_type, open_graph
from nvlm_deploy.backends.protocol import (
    Float32,
    SeenTiles,
    SessionOptions,
    TileStates,
)
from nvlm_deploy.backends.step import Step, check_capacity
from nvlm_deploy.backends.step_session import StepSession, check_tiles
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
        check_tiles(tiles, self._tile_shape)
        tokens_TND = np.empty((len(tiles), *self._token_shape), np.float32)
        for index in range(len(tiles)):
            tile = np.ascontiguousarray(tiles[index : index + 1])
            tokens_TND[index] = self._session.run(None, {"tiles": tile})[0][0]
        return tokens_TND


class OrtTileSession:
    """Visual tokens of an image's tiles to keys and values of all cross-attention layers."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        self._session = open_graph(path, options)
        self.facts = graph_facts(self._session)
        self._token_shape = tuple(self._session.get_inputs()[0].shape[1:])
        self._names = [value.name for value in self._session.get_outputs()]

    def states(self, visual_tokens: Float32) -> TileStates:
        """See `TileSession.states`."""
        if visual_tokens.shape[1:] != self._token_shape or not len(visual_tokens):
            raise NvlmError(
                f"visual tokens must be [tiles, {', '.join(map(str, self._token_shape))}], "
                f"not {list(visual_tokens.shape)}"
            )
        feed = {"visual_tokens": np.ascontiguousarray(visual_tokens, np.float32)}
        made = dict(zip(self._names, self._session.run(self._names, feed), strict=True))
        keys, values = (
            tuple(made[name] for name in self._names if name.startswith(kind))
            for kind in ("tile_key.", "tile_value.")
        )
        return TileStates(keys, values, made["tiles"])


class OrtDecoderSession(StepSession[OrtKvCache]):
    """Token ids and visual tokens to logits; keys and values are updated in place, on the device."""

    cache_class = OrtKvCache

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
        self._tile_layers = [int(name.partition(".")[2]) for name in shapes if name.startswith("tile_key.")]
        self._tile_shape = self._new_tile_shape(shapes)
        self._no_states: dict[int, TileStates] = {}
        self._vocab_size = int(self._session.get_outputs()[0].shape[2])
        self._context_length = self.facts.context_length or 0

    @property
    def context_length(self) -> int:
        """Tokens per row that the engine was built for."""
        return self._context_length

    def new_cache(self, batch: int, capacity: int) -> OrtKvCache:
        """Return an empty cache for `batch` rows of up to `capacity` tokens."""
        check_capacity(capacity, self._context_length)
        shape = (batch, self._kv_heads, capacity, self._head_dim)
        return OrtKvCache.empty(self._layers, shape, self._cache_type, self._memory)

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
        if self._tile_layers:
            seen = step.tiles or self._no_tiles(step)
            cache.bind_tiles(self._tile_layers, seen.states)
            inputs |= {"tiles": seen.states.tiles, "visible_tiles": seen.visible}
        binding = cache.binding
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        place = (np.float32, logits_BPV.shape, logits_BPV.ctypes.data)
        binding.bind_output("logits", "cpu", 0, *place)
        self._session.run_with_iobinding(binding)
        cache.lengths += step.new_B
        return logits_BPV

    def _new_tile_shape(self, shapes: Mapping[str, Any]) -> tuple[int, int, int]:
        """Layers with cross-attention, KV heads and head size of each; zeros without."""
        if not self._tile_layers:
            return 0, 0, 0
        _, heads, _, size = shapes[f"tile_key.{self._tile_layers[0]}"]
        return len(self._tile_layers), int(heads), int(size)

    def _no_tiles(self, step: Step) -> SeenTiles:
        """What text without images sees; the same object for every step, so that it is bound once."""
        layers, heads, size = self._tile_shape
        rows, width = step.ids_BS.shape
        if rows not in self._no_states:
            empty = (np.empty((rows, heads, 0, size), np.float32),) * layers
            self._no_states[rows] = TileStates(empty, empty, np.empty((rows, 0), np.int64))
        return SeenTiles(self._no_states[rows], np.zeros((rows, width, 2), np.int64))


open_vision, open_tiles, open_decoder = OrtVisionSession, OrtTileSession, OrtDecoderSession
