"""Intermediate results of an engine: its own graphs with more outputs, in memory alone.

Shapes: B rows of the batch, S tokens, R probed positions, C width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from nvlm_deploy.backends.onnxruntime.library import input_type, open_graph
from nvlm_deploy.backends.onnxruntime.stored import all_nodes
from nvlm_deploy.backends.protocol import Float32, Int64, SeenTiles, SessionOptions
from nvlm_deploy.errors import NvlmError

_PREFIX = "probe."
_POSITIONS = f"{_PREFIX}positions"
_NORMS = ("SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization", "LayerNormalization")
# Readers that are no norms: what takes the last layer's stream.
_OTHER_READERS = {"vision.stream": "projector.patches/Slice", "language.norm": "logits.hidden/GatherND"}


class GraphProbe:
    """A graph of a bundle whose residual stream can be read where named modules read it."""

    def __init__(self, path: Path, readers: Mapping[str, str], options: SessionOptions) -> None:
        """Open the graph at `path`; `readers` are modules of the model by the names of the results.

        Raises:
            NvlmError: the graph has no such module, or cannot be loaded.
        """
        graph = _with_outputs(path, readers)
        self._names = list(readers)
        self._session = open_graph(path, options, graph)
        self._cache_type: type[np.generic] = np.float32
        if any(value.name == "past_key.0" for value in self._session.get_inputs()):
            self._cache_type = input_type(self._session, "past_key.0")
        self._inputs = {value.name: value for value in self._session.get_inputs()}

    def tiles(self, tiles: NDArray[np.uint8], positions: Int64) -> dict[str, Float32]:
        """States of the tower for tiles uint8 [T, I, I, 3], one tile after the other: float32 [T * R, C].

        `visual_tokens` is the graph's own output, all of it: float32 [T * tokens, D].
        """
        runs = [self._run({"tiles": tiles[i : i + 1]}, positions, "visual_tokens") for i in range(len(tiles))]
        return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}

    def prompt(
        self,
        input_ids: Int64,
        visual: Float32,
        index: Int64,
        positions: Int64,
        tiles: SeenTiles | None = None,
    ) -> dict[str, Float32]:
        """States of the decoder, float32 [R, C].

        Args:
            input_ids: [S]. visual: visual tokens [V, D]. index: [V], their positions in `input_ids`.
            positions: [R], where states are wanted.
            tiles: what the prompt sees of tiles, in NVLM-X and NVLM-H; None: nothing.
        """
        length = len(input_ids)
        feeds: dict[str, NDArray[np.generic]] = {
            "input_ids": input_ids[None],
            "visual_tokens": visual,
            "visual_index": np.column_stack([np.zeros_like(index), index]),
            "past_lengths": np.zeros(1, np.int32),
            "new_lengths": np.array([length], np.int32),
            "logit_positions": np.zeros((1, 1), np.int64),
        }
        for name, value in self._inputs.items():
            if name.startswith(("past_key.", "past_value.")):
                _, heads, _, size = value.shape
                feeds[name] = np.zeros((1, heads, length, size), self._cache_type)
        return self._run({**feeds, **self._tiles(length, tiles)}, positions)

    def _tiles(self, length: int, tiles: SeenTiles | None) -> dict[str, NDArray[np.generic]]:
        """Inputs for cross-attention; there are none in NVLM-D."""
        names = [name for name in self._inputs if name.startswith(("tile_key.", "tile_value."))]
        if not names:
            return {}
        feeds: dict[str, NDArray[np.generic]] = {
            "tiles": np.empty((1, 0), np.int64) if tiles is None else tiles.states.tiles,
            "visible_tiles": np.zeros((1, length, 2), np.int64) if tiles is None else tiles.visible,
        }
        given = iter([] if tiles is None else zip(tiles.states.keys, tiles.states.values, strict=True))
        for key, value in zip(names[::2], names[1::2], strict=True):
            _, heads, _, size = self._inputs[key].shape
            empty = np.empty((1, heads, 0, size), np.float32)
            feeds[key], feeds[value] = next(given, (empty, empty))
        return feeds

    def _run(
        self, feeds: Mapping[str, NDArray[np.generic]], positions: Int64, *outputs: str
    ) -> dict[str, Float32]:
        wanted = [*(_PREFIX + name for name in self._names), *outputs]
        results = self._session.run(wanted, {**feeds, _POSITIONS: positions})
        return {name: rows[0] for name, rows in zip([*self._names, *outputs], results, strict=True)}


def _with_outputs(path: Path, readers: Mapping[str, str]) -> bytes:
    """The graph at `path` with one more output per reader, at the positions of one more input."""
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    graph.input.append(onnx.helper.make_tensor_value_info(_POSITIONS, onnx.TensorProto.INT64, ["probed"]))
    # A branch reads the stream from outside of it, so that it is a value of the graph itself.
    streams = _streams(all_nodes(graph))
    for name, reader in readers.items():
        if reader not in streams:
            raise NvlmError(
                f"{path}: no node of the graph belongs to {reader}, so {name} cannot be looked at",
                hint="the bundle was built by another version of nvlm-deploy; build it again",
            )
        output = _PREFIX + name
        graph.node.append(onnx.helper.make_node("Gather", [streams[reader], _POSITIONS], [output], axis=1))
        graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    serialized: bytes = model.SerializeToString()
    return serialized


def _streams(nodes: Iterable[onnx.NodeProto]) -> dict[str, str]:
    """The value that every norm reads, by the norm's name; a fused sum is the norm's own fourth output."""
    streams, by_name = {}, {}
    for node in nodes:
        by_name[node.name] = node
        if node.op_type in _NORMS:
            fused = node.op_type.startswith("Skip")
            module = node.name.rpartition("/")[0].removesuffix(".rms").removesuffix(".skip")
            streams[module] = node.output[3] if fused else node.input[0]
    for reader, name in _OTHER_READERS.items():
        if name in by_name:
            streams[reader] = by_name[name].input[0]
    return streams
