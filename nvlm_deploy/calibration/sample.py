"""A conversation as the model sees it: token ids, tiles, and the class of every position."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.preprocess.prompt import Prompt, PromptBuilder
from nvlm_deploy.preprocess.tiles import preprocess_images


class TokenClass(IntEnum):
    """What stands at a position of the prompt.

    VISUAL is a visual token of an ordinary tile, THUMBNAIL one of the thumbnail behind several tiles. The
    tile of an image that has only one counts as VISUAL, although the prompt tags it as the thumbnail: it is
    all that the model sees of the image. TAG is a token with a part of a tile's tag in it, TEXT all the rest.
    """

    TEXT = 0
    TAG = 1
    VISUAL = 2
    THUMBNAIL = 3


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
    """

    label: str
    input_ids: npt.NDArray[np.int64]
    tiles: npt.NDArray[np.uint8]
    visual_positions: npt.NDArray[np.int64]
    token_classes: npt.NDArray[np.int8]
    tiles_per_image: tuple[int, ...]
    prompt_length: int
    cut_tokens: int = 0
    has_text: bool = True

    def __len__(self) -> int:
        return len(self.input_ids)

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
        """SHA-256 of the token ids (little-endian) and the tiles' bytes, each with its length before it."""
        sha = hashlib.sha256()
        for array in (self.input_ids.astype("<i8", copy=False), self.tiles):
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
        prompt = builder.build(conversation.prompt, tiles_per_image)
        input_ids = np.concatenate([prompt.input_ids, _answer_ids(conversation, builder)])
    except NvlmError as error:
        # The error of an image file names the file, which may be the label itself.
        known = conversation.label in error.message
        message = error.message if known else f"{conversation.label}: {error.message}"
        raise NvlmError(message, hint=error.hint) from None
    size = builder.config.tile_size
    no_tiles = np.empty((0, size, size, 3), dtype=np.uint8)
    return CalibrationSample(
        label=conversation.label,
        input_ids=input_ids,
        tiles=np.concatenate([no_tiles, *(image.tiles for image in tiled)]),
        visual_positions=prompt.visual_positions,
        token_classes=_classify(prompt, len(input_ids), tiles_per_image, builder),
        tiles_per_image=tiles_per_image,
        prompt_length=len(prompt),
        has_text=conversation.has_text,
    )


def _answer_ids(conversation: Conversation, builder: PromptBuilder) -> npt.NDArray[np.int64]:
    if conversation.answer is None:
        return np.empty(0, dtype=np.int64)
    tokenizer = builder.tokenizer
    return np.array([*tokenizer.encode_text(conversation.answer), tokenizer.eos_id], dtype=np.int64)


def _classify(
    prompt: Prompt, length: int, tiles_per_image: Sequence[int], builder: PromptBuilder
) -> npt.NDArray[np.int8]:
    """Return the class of each of `length` positions, of which the first are the prompt's: int8 [length]."""
    classes = np.full(length, TokenClass.TEXT, dtype=np.int8)
    places = iter(prompt.visual_positions.reshape(-1, builder.config.visual_tokens_per_tile))
    for tiles in tiles_per_image:
        for number in range(1, tiles + 1):
            place = next(places)
            last = number == tiles
            tag = builder.config.thumbnail_tag if last else f"<tile_{number}>"
            classes[_tag_start(prompt, int(place[0]), tag, builder) : place[0]] = TokenClass.TAG
            classes[place] = TokenClass.THUMBNAIL if last and tiles > 1 else TokenClass.VISUAL
    return classes


def _tag_start(prompt: Prompt, end: int, tag: str, builder: PromptBuilder) -> int:
    """Return where the tokens of the tag that ends before position `end` start.

    The tokenizer decides how many there are, and its first token may hold the end of `<Image>`, too.
    """
    for start in range(end - 1, max(end - len(tag), 0) - 1, -1):
        if builder.tokenizer.decode(prompt.input_ids[start:end], skip_special_tokens=False).endswith(tag):
            return start
    raise NvlmError(f"the tokens before position {end} of a prompt do not spell the tag {tag}")
