"""Images that a plain prompt writes out itself, `<Image>` and tags, held against the tiles that are there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from nvlm_deploy.errors import UsageError
from nvlm_deploy.preprocess.tokenizer import IMAGE_TOKEN

IMAGE_MARKER = "<image>"
_TAG = re.compile(r"<tile_(?:\d+|global|global_thumbnail)>", re.ASCII)
_WRITTEN = re.compile(rf"<Image>((?:{_TAG.pattern}|{re.escape(IMAGE_TOKEN)}|\s)*)</Image>", re.ASCII)
_HINT = f"write {IMAGE_MARKER} where an image goes, and its tags follow; in messages all text is text"


def mark_written_images(prompt: str, tags_per_image: Sequence[Sequence[str]]) -> str:
    """Return the prompt with `<image>` for every image that it writes out.

    Args:
        tags_per_image: the tags of every image that is passed, in order.

    Raises:
        UsageError: an image is written with no tags or not with its own, or the text around images names a
            tile that no image has.
    """
    pieces, end, number = [], 0, 0
    for written in _WRITTEN.finditer(prompt):
        before = prompt[end : written.start()]
        number += before.count(IMAGE_MARKER)
        if number < len(tags_per_image):
            _check_tags(f"image {number + 1}", _TAG.findall(written[1]), tags_per_image[number])
        pieces += [before, IMAGE_MARKER]
        number, end = number + 1, written.end()
    marked = "".join([*pieces, prompt[end:]])
    known = {tag for tags in tags_per_image for tag in tags}
    for tag in _TAG.findall(marked):
        if tag not in known:
            raise UsageError(f"the prompt names {tag}, and no image that is passed has it", hint=_HINT)
    return marked


def _check_tags(image: str, found: Sequence[str], expected: Sequence[str]) -> None:
    if list(found) == list(expected):
        return
    if not found:
        raise UsageError(f"{image} is written without tags", hint=_HINT)
    if Counter(found) == Counter(expected):
        wrong, right = next(pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1])
        what = f"the tags of {image} are out of order: {wrong} stands where {right} belongs"
    else:
        what = f"{image} is written with {', '.join(found)}, and its tiles' tags are {', '.join(expected)}"
    raise UsageError(what, hint=_HINT)
