"""What a request hands an engine of NVLM-X or NVLM-H besides its tokens: tiles, and what each token sees.

TensorRT-LLM takes it as MLLaMA's: `encoder_input_features` [L, D], which the executor makes the engine's
`encoder_output`, `encoder_output_length` L, `cross_attention_mask` [S, L] and `skip_cross_attn_blocks` [1].
Keys and values are made of it in the engine, in the first step of a request.

Entry 0 is zeros. A token that sees no tile attends to it alone, so that no row of the mask is empty, and
what is added to the token is exactly 0; the engine reads from the mask's first column which tokens those are.

Shapes: T tiles of a request, N visual tokens per tile, D hidden size, L entries, S tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.preprocess.prompt import CrossPrompt

Float32 = npt.NDArray[np.float32]
LookUp = Callable[[npt.NDArray[np.int64]], Float32]
"""Token ids [n] to rows of the embedding, float32 [n, D]."""

_NOTHING = 1


@dataclass(frozen=True, slots=True, eq=False)
class EncoderInputs:
    """One request's.

    Attributes:
        features: float32 [L, D], to be given in the decoder's dtype.
        mask: bool [S, L], true where a token attends to an entry. It belongs on the GPU: for one in host
            memory the runtime of 1.x moves its pointer before it notes the place of the copy.
        skip: whether no token sees a tile; a step whose requests all say so leaves cross-attention out.
    """

    features: Float32
    mask: npt.NDArray[np.bool_]
    skip: bool


class TileFeatures:
    """Makes features of visual tokens, as the engine expects them: normalized once for all its layers.

    A layer's norm is the same for all layers but for its weight, which stays in the engine. So the norm goes
    over visual tokens, over the embeddings of tags, and over a tag's mean, before that is added (NVLM-H).
    """

    def __init__(self, config: CrossAttentionConfig, norm_eps: float, look_up: LookUp | None = None) -> None:
        """`look_up` is for the tags of NVLM-H."""
        self._config, self._eps, self._look_up = config, norm_eps, look_up

    def inputs(self, cross: CrossPrompt, visual_TND: Float32 | None, width: int) -> EncoderInputs:
        """Put a request together; tokens behind the prompt see what its last token sees.

        Args:
            cross: of the prompt.
            visual_TND: visual tokens of all its tiles in order; None without images.
            width: D.

        Raises:
            UsageError: there are not as many tiles as the prompt has places for.
            NvlmError: visual tokens have another width, or are not finite.
        """
        tiles = len(cross.tiles) + len(cross.sequence_tiles)
        if visual_TND is None:
            visual_TND = np.zeros((0, 0, width), np.float32)
        if len(visual_TND) != tiles:
            raise UsageError(f"the prompt has places for {tiles} tiles, and {len(visual_TND)} are given")
        if visual_TND.shape[-1] != width or not np.isfinite(visual_TND).all():
            raise NvlmError(
                f"visual tokens {list(visual_TND.shape)} are not finite and {width} wide",
                hint="the vision engine overflows, or belongs to another model",
            )
        parts, numbers = [np.zeros((_NOTHING, width), np.float32)], [np.full(_NOTHING, -1)]
        for number, tile in enumerate(cross.tiles):
            entries = self._entries(visual_TND[tile], cross.tags[number] if cross.tags else None)
            parts.append(entries)
            numbers.append(np.full(len(entries), number))
        return EncoderInputs(
            np.concatenate(parts), _mask(cross, np.concatenate(numbers)), not len(cross.tiles)
        )

    def _entries(self, visual_ND: Float32, tag: npt.NDArray[np.int64] | None) -> Float32:
        """One tile's: the embeddings of its tag, if it has one, and its visual tokens."""
        visual_ND = self._normalized(visual_ND)
        if tag is None:
            return visual_ND
        assert self._look_up is not None, "tags among keys are NVLM-H's, which looks them up"
        rows_GD = self._look_up(tag)
        if self._config.bind_tags:
            visual_ND = visual_ND + self._normalized(rows_GD.mean(axis=0, keepdims=True))
        return np.concatenate([self._normalized(rows_GD), visual_ND])

    def _normalized(self, x: Float32) -> Float32:
        if not self._config.kv_norm:
            return x
        variance = np.square(x).mean(axis=-1, keepdims=True) + np.float32(self._eps)
        normalized: Float32 = x / np.sqrt(variance)
        return normalized


def entries_of(tiles: int, tokens_per_tile: int, tag_tokens: int = 0) -> int:
    """L of a request with `tiles` tiles in cross-attention, whose tags have at most `tag_tokens` tokens."""
    return _NOTHING + tiles * (tokens_per_tile + tag_tokens)


def check_entries(inputs: EncoderInputs, most: int) -> None:
    """Refuse a request that the engine was not built for.

    Raises:
        UsageError: it has more entries than `max_encoder_input_len`.
    """
    if len(inputs.features) > most:
        raise UsageError(
            f"the request has {len(inputs.features):,} entries of tiles, and the engine takes {most:,}",
            hint="send fewer or less elongated images, or compile the engine for more tiles",
        )


def _mask(cross: CrossPrompt, tiles_L: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    first_S1, end_S1 = cross.visible[:, :1], cross.visible[:, 1:]
    mask_SL: npt.NDArray[np.bool_] = (tiles_L >= first_S1) & (tiles_L < end_S1) & (tiles_L >= 0)
    mask_SL[:, 0] = ~mask_SL.any(axis=1)
    return mask_SL
