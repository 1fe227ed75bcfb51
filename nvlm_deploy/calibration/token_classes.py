"""What stands at every position of a sample, and at every entry of its tiles in cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.preprocess.prompt import CrossPrompt, Prompt
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder

Classes = npt.NDArray[np.int8]
"""Values of TokenClass, or UNSEEN."""

# Rows that nothing depends on: padding behind short tags, and positions that see no tile.
UNSEEN = -1


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


def tile_classes(tiles_per_image: Sequence[int]) -> Classes:
    """Class of the visual tokens of every tile, int8 [T]: the last of several tiles is the thumbnail."""
    kinds: list[int] = []
    for tiles in tiles_per_image:
        last = TokenClass.THUMBNAIL if tiles > 1 else TokenClass.VISUAL
        kinds += [TokenClass.VISUAL] * (tiles - 1) + [last]
    return np.array(kinds, dtype=np.int8)


def classify_tokens(
    prompt: Prompt, length: int, tiles_per_image: Sequence[int], builder: PromptBuilder
) -> Classes:
    """Return the class of each of `length` positions, of which the first are the prompt's: int8 [length]."""
    classes = np.full(length, TokenClass.TEXT, dtype=np.int8)
    if prompt.cross is not None and not len(prompt.cross.sequence_tiles):
        _mark_text_tags(classes, prompt.cross, tiles_per_image, builder)
        return classes
    kinds = iter(tile_classes(tiles_per_image))
    places = iter(prompt.visual_positions.reshape(-1, builder.config.visual_tokens_per_tile))
    for tiles in tiles_per_image:
        for tile, tag in enumerate(_tags(tiles, builder)):
            kind = next(kinds)
            if prompt.cross is not None and tile < tiles - 1:
                continue  # Regular tiles of NVLM-H are not in the sequence, nor are their tags.
            place = next(places)
            classes[_tag_start(prompt, int(place[0]), tag, builder) : place[0]] = TokenClass.TAG
            classes[place] = kind
    return classes


def classify_entries(
    cross: CrossPrompt | None, tiles_per_image: Sequence[int], tokens_per_tile: int
) -> Classes:
    """Return the class of every entry of the tiles in cross-attention, as `TileMemory` lays them out, int8.

    A tile's tag comes first, padded to the longest one's length, then its visual tokens.
    """
    if cross is None:
        return np.empty(0, dtype=np.int8)
    kinds, longest = tile_classes(tiles_per_image), max((len(tag) for tag in cross.tags), default=0)
    entries: list[int] = []
    for number, tile in enumerate(cross.tiles):
        tag = len(cross.tags[number]) if cross.tags else 0
        entries += [TokenClass.TAG] * tag + [UNSEEN] * (longest - tag)
        entries += [int(kinds[tile])] * tokens_per_tile
    return np.array(entries, dtype=np.int8)


def _mark_text_tags(
    classes: Classes, cross: CrossPrompt, tiles_per_image: Sequence[int], builder: PromptBuilder
) -> None:
    """NVLM-X: a tag is tokenized apart, and the first position that sees its tile alone begins it."""
    tags = [tag for tiles in tiles_per_image for tag in _tags(tiles, builder)]
    for tile, tag in enumerate(tags):
        start = int(np.flatnonzero((cross.visible == (tile, tile + 1)).all(axis=1))[0])
        classes[start : start + len(builder.tokenizer.encode_text(tag))] = TokenClass.TAG


def _tags(tiles: int, builder: PromptBuilder) -> list[str]:
    return [*(f"<tile_{number}>" for number in range(1, tiles)), builder.config.thumbnail_tag]


def _tag_start(prompt: Prompt, end: int, tag: str, builder: PromptBuilder) -> int:
    """Return where the tokens of the tag that ends before position `end` start.

    The tokenizer decides how many there are, and its first token may hold the end of `<Image>`, too.
    """
    for start in range(end - 1, max(end - len(tag), 0) - 1, -1):
        if builder.tokenizer.decode(prompt.input_ids[start:end], skip_special_tokens=False).endswith(tag):
            return start
    raise NvlmError(f"the tokens before position {end} of a prompt do not spell the tag {tag}")
