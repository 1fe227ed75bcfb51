"""One training sample as people look at it: ids and what they spell, which of them count, tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
from PIL import Image

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.preprocess.answered import IGNORED_LABEL
from nvlm_deploy.preprocess.tokenizer import Tokenizer
from nvlm_deploy.train.data.sample import SkippedSample, TrainSample
from nvlm_deploy.train.plan import TrainingPlan

_GAP = 4


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of one kind; visual tokens of a tile are one span."""

    start: int
    ids: tuple[int, ...]
    text: str
    counts: bool
    visual: bool


def show_sample(plan: TrainingPlan, number: int) -> TrainSample:
    """The sample that comes `number`-th in the order of a run, from 0.

    Raises:
        NvlmError: it would be skipped; says why.
    """
    draw = next(islice(iter(plan.order()), number, None))
    sample = plan.dataset()[draw]
    if isinstance(sample, SkippedSample):
        raise NvlmError(f"sample {number} is skipped: {sample.reason}", hint=f"it is {sample.label}")
    return sample


def spans(tokenizer: Tokenizer, sample: TrainSample) -> list[Span]:
    """The sequence as spans of tokens that count or do not."""
    visual = np.zeros(len(sample), dtype=np.bool_)
    visual[sample.answered.visual_positions] = True
    counts = sample.answered.labels != IGNORED_LABEL
    kinds = counts * 2 + visual
    edges = [0, *(int(place) + 1 for place in np.flatnonzero(np.diff(kinds))), len(sample)]
    found = []
    for start, end in pairwise(edges):
        ids = tuple(int(token) for token in sample.answered.input_ids[start:end])
        text = tokenizer.decode(ids, skip_special_tokens=False)
        found.append(Span(start, ids, text, bool(counts[start]), bool(visual[start])))
    return found


def tile_picture(sample: TrainSample) -> Image.Image:
    """All tiles side by side, image after image, in rows of at most seven.

    Raises:
        NvlmError: the sample has no image.
    """
    if not len(sample.tiles):
        raise NvlmError(f"{sample.label} has no image", hint="leave out -o")
    count, side = len(sample.tiles), sample.tiles.shape[1]
    columns = min(count, 7)
    rows = math.ceil(count / columns)
    step = side + _GAP
    picture = Image.new("RGB", (columns * step + _GAP, rows * step + _GAP), (200, 30, 30))
    for number, tile in enumerate(sample.tiles):
        row, column = divmod(number, columns)
        picture.paste(Image.fromarray(tile), (_GAP + column * step, _GAP + row * step))
    return picture
