"""A conversation as the model sees it: token ids, tiles, and the class of every position."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.calibration.token_classes import Classes, classify_entries, classify_tokens
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.preprocess.answered import build_answered
from nvlm_deploy.preprocess.prompt import CrossPrompt
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.preprocess.tiles import preprocess_images


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationSample:
    """One conversation of S tokens, answers included, with V visual tokens from T tiles of I x I pixels.

    Attributes:
        label: how errors call it.
        input_ids: int64 [S].
        tiles: uint8 [T, I, I, 3], RGB; the tiles of all images, in order.
        visual_positions: int64 [V], ascending: where `input_ids` holds an image placeholder.
        token_classes: int8 [S], values of TokenClass.
        tiles_per_image: the number of tiles of each image, thumbnail included; their sum is T.
        prompt_length: tokens before the last answer; S if there is none.
        cut_tokens: tokens at the end of the answer that `shorten` has taken away.
        has_text: whether there is text besides the frame of the prompt.
        cross: where tiles go besides the sequence, and what the prompt's tokens see of them; the answer sees
            what the last of them sees. None for NVLM-D.
        entry_classes: int8, the class of every entry that cross-attention attends to; UNSEEN is padding.
    """

    label: str
    input_ids: npt.NDArray[np.int64]
    tiles: npt.NDArray[np.uint8]
    visual_positions: npt.NDArray[np.int64]
    token_classes: Classes
    tiles_per_image: tuple[int, ...]
    prompt_length: int
    cut_tokens: int = 0
    has_text: bool = True
    cross: CrossPrompt | None = None
    entry_classes: Classes = field(default_factory=lambda: np.empty(0, dtype=np.int8))

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def sees_tiles(self) -> npt.NDArray[np.bool_]:
        """Which tokens attend to a tile in cross-attention, [S]."""
        if self.cross is None or not len(self.cross.tiles):
            return np.zeros(len(self), dtype=np.bool_)
        first, end = self.cross.visible.T
        return np.pad(end > first, (0, len(self) - len(first)), mode="edge")

    def shorten(self, max_tokens: int) -> CalibrationSample | None:
        """Cut the last answer to fit into `max_tokens`, or return None if the prompt alone does not fit.

        Attention is causal, so the positions that stay see what they would have seen. A prompt is never cut.
        """
        if self.prompt_length > max_tokens:
            return None
        if len(self) <= max_tokens:
            return self
        return replace(
            self,
            input_ids=self.input_ids[:max_tokens],
            token_classes=self.token_classes[:max_tokens],
            cut_tokens=self.cut_tokens + len(self) - max_tokens,
        )

    def digest(self) -> bytes:
        """SHA-256 of the token ids (little-endian) and the tiles' bytes, each with its length before it.

        In NVLM-X and NVLM-H what each token sees of the tiles comes behind them.
        """
        sha = hashlib.sha256()
        arrays = [self.input_ids.astype("<i8", copy=False), self.tiles]
        if self.cross is not None:
            arrays.append(self.cross.visible.astype("<i8", copy=False))
        for array in arrays:
            sha.update(len(array).to_bytes(8, "little"))
            sha.update(np.ascontiguousarray(array).data)
        return sha.digest()


def build_sample(conversation: Conversation, builder: PromptBuilder) -> CalibrationSample:
    """Tile the images and tokenize the conversation with its answers, as the model sees it while it answers.

    Raises:
        NvlmError: an image is missing or broken, or a text is no valid Unicode; names the conversation.
    """
    try:
        tiled = preprocess_images(conversation.images, builder.config)
        tiles_per_image = tuple(len(image) for image in tiled)
        answered = build_answered(builder, conversation.prompt, conversation.answer, tiles_per_image)
    except NvlmError as error:
        # The error of an image file names the file, which may be the label itself.
        known = conversation.label in error.message
        message = error.message if known else f"{conversation.label}: {error.message}"
        raise NvlmError(message, hint=error.hint) from None
    prompt, input_ids = answered.prompt, answered.input_ids
    size = builder.config.tile_size
    no_tiles = np.empty((0, size, size, 3), dtype=np.uint8)
    return CalibrationSample(
        label=conversation.label,
        input_ids=input_ids,
        tiles=np.concatenate([no_tiles, *(image.tiles for image in tiled)]),
        visual_positions=prompt.visual_positions,
        token_classes=classify_tokens(prompt, len(input_ids), tiles_per_image, builder),
        tiles_per_image=tiles_per_image,
        prompt_length=len(prompt),
        has_text=conversation.has_text,
        cross=prompt.cross,
        entry_classes=classify_entries(prompt.cross, tiles_per_image, builder.config.visual_tokens_per_tile),
    )
