"""A request's visual tokens as TensorRT-LLM takes them: rows of one table, ids behind the vocabulary.

One table holds the visual tokens of all tiles of a request, in order. The k-th of them stands in the prompt
as id `vocab_size + k`, with the vocabulary of the decoder's config: the tokenizer may be smaller, and ids
between the two are rows of the embedding. Counting ids anew for every tile would point all tiles at the
first one's rows.

Shapes: S tokens, V visual tokens, N visual tokens per tile, T tiles, D hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nvlm_deploy.errors import NvlmError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

_TEXT = 0


def prompt_ids(
    input_ids: npt.NDArray[np.int64], visual_positions: npt.NDArray[np.int64], vocab_size: int
) -> list[int]:
    """Return ids [S] whose placeholders, at `visual_positions` [V], point into the table in order.

    Raises:
        NvlmError: a token of text is no row of the embedding.
    """
    ids = input_ids.copy()
    ids[visual_positions] = vocab_size + np.arange(len(visual_positions))
    text = np.delete(ids, visual_positions)
    if len(text) and not 0 <= int(text.min()) <= int(text.max()) < vocab_size:
        raise NvlmError(f"the prompt has token ids outside the vocabulary of {vocab_size:,} tokens")
    return [int(i) for i in ids]


def extra_ids(
    length: int,
    visual_positions: npt.NDArray[np.int64],
    tiles: Sequence[npt.NDArray[np.uint8]],
    tokens_per_tile: int,
) -> list[int]:
    """Return what tells the tokens of one image from those of another, unsigned 64-bit numbers [S].

    Keys and values of earlier requests are reused where ids and extra ids agree from the start. A visual
    token has its tile's hash, which is what it is computed from; text has 0.

    Args:
        length: S.
        visual_positions: int64 [V].
        tiles: of all images in order, uint8 [T, I, I, 3] each.
        tokens_per_tile: N; V is N times the number of tiles.
    """
    hashes = [_tile_hash(tile) for image in tiles for tile in image]
    if len(hashes) * tokens_per_tile != len(visual_positions):
        raise NvlmError(f"{len(hashes)} tiles have no {len(visual_positions)} visual tokens")
    ids = [_TEXT] * length
    for number, position in enumerate(visual_positions):
        ids[int(position)] = hashes[number // tokens_per_tile]
    return ids


def check_room(visual_tokens: int, rows: int, prompt_length: int, max_input: int) -> None:
    """Refuse requests that the engine was not built for.

    Raises:
        UsageError: too many visual tokens for the prompt table, or too long a prompt.
    """
    if visual_tokens > rows:
        raise UsageError(
            f"the request has {visual_tokens:,} visual tokens, and the engine's prompt table {rows:,} rows",
            hint="send fewer or less elongated images, or compile the engine for more tiles",
        )
    if prompt_length > max_input:
        raise UsageError(
            f"the prompt has {prompt_length:,} tokens, and the engine takes {max_input:,}",
            hint="shorten the prompt, send fewer images, or compile the engine with a larger context",
        )


def embedding_table(visual_VD: npt.NDArray[np.float32], dtype: str) -> Tensor:
    """Return the table [V, D] in the decoder's dtype, `float16` or `bfloat16`, on the host.

    Raises:
        NvlmError: a visual token is not finite in that dtype.
    """
    import torch

    types: dict[str, Any] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    table = torch.from_numpy(np.ascontiguousarray(visual_VD)).to(types[dtype])
    if not bool(torch.isfinite(table).all()):
        raise NvlmError(
            f"visual tokens are not finite in {dtype}",
            hint="the vision engine overflows: compile it with norms in FP32, or in BF16",
        )
    return table


def _tile_hash(tile: npt.NDArray[np.uint8]) -> int:
    """64 bits of a tile uint8 [I, I, 3], never the number of text."""
    digest = hashlib.blake2b(np.ascontiguousarray(tile).data, digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
