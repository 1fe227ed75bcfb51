"""What a backend's sessions look like to the runtime. NumPy and the standard library only.

Shapes: B rows of the batch, S new tokens per row (right-padded), P logit positions, V visual tokens of
the whole batch, D decoder hidden size, T tiles, N visual tokens per tile, I pixels per side of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How sessions use this machine.

    threads: CPU threads of one session; None uses all that this process may run on.
    memory: `fast` repacks weights for the CPU when they are loaded. `mapped` leaves them in the file, for
        models that do not fit into memory: opening takes no time, and quantized models run much slower.
    device: `cpu`, `cuda` or `cuda:N`, the Nth GPU. There is no falling back from one to the other.
    prefill_chunk: longer prompts are computed in pieces of so many tokens, which bounds their memory.
    """

    threads: int | None = None
    memory: Literal["fast", "mapped"] = "fast"
    device: str = "cpu"
    prefill_chunk: int = 256


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What an opened engine says of itself, to be held against the manifest.

    inputs and outputs: `{"dtype": "float32", "shape": ["batch", 64]}` by name; texts are free dimensions.
    context_length: tokens per row, of a decoder. record: what the bundle's manifest said when the graph was
    written (`EngineManifest.record`); None if the engine's format has no room for it.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    context_length: int | None = None
    record: Mapping[str, Any] | None = None


class KvCache(Protocol):
    """Keys and values of a batch; made by `DecoderSession.new_cache` and advanced by its `run`."""

    lengths: Int32
    """Tokens in the cache, int32 [B]. Writing smaller numbers into it drops the last tokens."""

    @property
    def capacity(self) -> int:
        """Tokens that fit into each row."""


class VisionSession(Protocol):
    """Tiles to visual tokens."""

    @property
    def facts(self) -> GraphFacts | None:
        """What the engine says of itself; None if its format keeps too little to compare."""

    def encode(self, tiles: NDArray[np.uint8]) -> Float32:
        """RGB tiles uint8 [T, I, I, 3] -> visual tokens float32 [T, N, D]."""


class DecoderSession(Protocol):
    """Token ids and visual tokens to logits."""

    @property
    def facts(self) -> GraphFacts | None:
        """What the engine says of itself; None if its format keeps too little to compare."""

    @property
    def context_length(self) -> int:
        """Tokens per row that the engine was built for."""

    @property
    def vocab_size(self) -> int:
        """Number of logits per position."""

    def new_cache(self, batch: int, capacity: int) -> KvCache:
        """Return an empty cache for `batch` rows of up to `capacity` tokens."""

    def run(
        self,
        input_ids: Int64,
        new_lengths: Int32,
        cache: KvCache,
        visual_tokens: Float32 | None = None,
        visual_index: Int64 | None = None,
        logit_positions: Int64 | None = None,
    ) -> Float32:
        """Append new tokens to the cache and return logits.

        Args:
            input_ids: [B, S]; row b has `new_lengths[b]` tokens, at least one, and then padding of any id.
            new_lengths: [B].
            cache: its `lengths` grow by `new_lengths`.
            visual_tokens: [V, D], rows that replace the embeddings of placeholders; None for none.
            visual_index: [V, 2], (row of the batch, position in `input_ids`) of each of them.
            logit_positions: [B, P], positions in `input_ids`; None for each row's last token.

        Returns:
            float32 [B, vocabulary] without `logit_positions`, else [B, P, vocabulary].

        Raises:
            NvlmError: the tokens do not fit into the cache, or an argument has a wrong shape or value.
        """


@dataclass(frozen=True, slots=True, eq=False)
class TokenRequest:
    """One request to an engine that schedules requests itself and samples on its device.

    Attributes:
        input_ids: [S], with placeholders.
        visual_positions: [V], ascending: where `input_ids` holds placeholders.
        tiles: uint8 [T, I, I, 3] of every image, in order.
        visual_tokens: [V, D]; None without images.
        end_id: the token that ends the answer.
        temperature, top_k, top_p, seed: as in `nvlm_deploy.runtime.sampling.Sampling`.
        log_probs: report the log-probability of every chosen token.
    """

    input_ids: Int64
    visual_positions: Int64
    tiles: tuple[NDArray[np.uint8], ...]
    visual_tokens: Float32 | None
    max_new_tokens: int
    end_id: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    log_probs: bool = False


@dataclass(frozen=True, slots=True)
class TokenUpdate:
    """What a request has got since the last update. final: there will be no more."""

    tokens: tuple[int, ...]
    final: bool
    log_probs: tuple[float, ...] = ()


@runtime_checkable
class InflightSession(Protocol):
    """Requests in, tokens out: many requests are in flight at once; safe to share between threads."""

    @property
    def context_length(self) -> int:
        """Tokens per request that the engine was built for."""

    def submit(self, request: TokenRequest) -> int:
        """Start a request; return its number.

        Raises:
            UsageError: it does not fit the engine.
        """

    def next_update(self, number: int) -> TokenUpdate:
        """Wait for what a request gets next.

        Raises:
            NvlmError: the engine failed on it.
        """

    def cancel(self, number: int) -> None:
        """End a request whose answer nobody waits for."""

    def close(self) -> None:
        """End all requests and free the device."""
