"""Held-out questions as token sequences with their right answers, made by the independent contract.

Shapes: S tokens, V visual tokens, T tiles, I pixels per side of a tile, P positions that predict the answer,
L positions whose logits are compared.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from nvlm_deploy.calibration import CalibrationSample
from nvlm_deploy.preprocess.prompt import CrossPrompt
from nvlm_deploy.synthetic.documents import Document, Exchange, document
from nvlm_deploy.verify.contract import Contract, ContractPrompt

Row = Literal["ocr", "table", "chart", "position", "probe", "text"]
# Rows of the report that have images, and the kinds of generated documents in them.
ROW_OF_KIND: dict[str, Row] = {
    "sign": "ocr",
    "table": "table",
    "chart": "chart",
    "corners": "position",
    "receipt": "ocr",
}
# All rows with images; those of questions from a file come last.
IMAGE_ROWS: tuple[Row, ...] = (*dict.fromkeys(ROW_OF_KIND.values()), "probe")
# Pages of the held-out split from here on: what is evaluated elsewhere starts at 0.
FIRST_PAGE = 100_000
_PROBED_POSITIONS = 48
_PROBED_PER_TILE = 24


@dataclass(frozen=True, slots=True, eq=False)
class VerifyPrompt:
    """One question, its only right answer, and the sequence of both.

    Attributes:
        label: how reports call it.
        row: the row of the report that it counts in.
        image: None for a prompt of text alone.
        sequence: token ids [S] of prompt and answer, tiles uint8 [T, I, I, 3], and where they go.
        answer_ids: int64 [P]; the last one ends the turn.
        logit_positions: int64 [L], the positions whose logits are compared; the last P predict `answer_ids`.
    """

    label: str
    row: Row
    exchange: Exchange
    image: Image.Image | None
    sequence: CalibrationSample
    answer_ids: npt.NDArray[np.int64]
    logit_positions: npt.NDArray[np.int64]

    def probe_positions(self) -> npt.NDArray[np.int64]:
        """Positions at which the decoder's layers are compared: spread evenly, the last one included."""
        return spread(len(self.sequence), _PROBED_POSITIONS)


def tile_probe_positions(positions: int) -> npt.NDArray[np.int64]:
    """Positions of a tile at which the tower's layers are compared; the first is the class token."""
    return spread(positions, _PROBED_PER_TILE)


def spread(length: int, count: int) -> npt.NDArray[np.int64]:
    """At most `count` of the indices below `length`, evenly spaced, both ends included."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int64))


def image_prompts(contract: Contract, count: int) -> list[VerifyPrompt]:
    """`count` questions about generated pages, as many of every kind."""
    kinds = list(ROW_OF_KIND)
    return [image_prompt(contract, kinds[i % len(kinds)], FIRST_PAGE + i) for i in range(count)]


def image_prompt(contract: Contract, kind: str, index: int) -> VerifyPrompt:
    """A question about the held-out page `index` of one kind."""
    page = document("heldout", index, contract.side, (kind,))
    return make_prompt(contract, f"{kind} {index}", ROW_OF_KIND[kind], _exchange(page, index), page.image)


def text_prompts(contract: Contract, count: int) -> list[VerifyPrompt]:
    """`count` questions about the texts of pages, without an image."""
    prompts = []
    for index in range(FIRST_PAGE, FIRST_PAGE + count):
        page = document("heldout", index, contract.side)
        asked = _exchange(page, index)
        exchange = Exchange(f"{page.transcript}\n{asked.question}", asked.answer)
        prompts.append(make_prompt(contract, f"text {index}", "text", exchange, None))
    return prompts


def with_swapped_tags(contract: Contract, prompt: VerifyPrompt, first: int, second: int) -> VerifyPrompt:
    """The same question and tiles, with the tags of two tiles exchanged."""
    tags = contract.tags(len(prompt.sequence.tiles))
    tags[first], tags[second] = tags[second], tags[first]
    label = f"{prompt.label}, tags {first + 1} and {second + 1} swapped"
    return make_prompt(contract, label, prompt.row, prompt.exchange, prompt.image, tags)


def _exchange(page: Document, index: int) -> Exchange:
    return random.Random(f"verify-{index}").choice(page.exchanges)


def make_prompt(
    contract: Contract,
    label: str,
    row: Row,
    exchange: Exchange,
    image: Image.Image | None,
    tags: Sequence[str] | None = None,
) -> VerifyPrompt:
    """The sequence of one question and its right answer; `tags` are the contract's unless given."""
    side = contract.side
    tiles = np.empty((0, side, side, 3), np.uint8) if image is None else contract.tiles(image)
    if tags is None:
        tags = contract.tags(len(tiles)) if len(tiles) else ()
    prompt = contract.prompt(exchange.question, tags)
    length, answer_ids = len(prompt.input_ids), np.array(contract.answer(exchange.answer), np.int64)
    # The end of the turn is predicted, and nothing is predicted from it.
    input_ids = np.concatenate([prompt.input_ids, answer_ids[:-1]])
    sequence = CalibrationSample(
        label=label,
        input_ids=input_ids,
        tiles=tiles,
        visual_positions=prompt.visual_positions,
        token_classes=np.zeros(len(input_ids), np.int8),
        tiles_per_image=(len(tiles),) if len(tiles) else (),
        prompt_length=length,
        cross=_cross(prompt),
    )
    # Questions whose tags are exchanged are compared from the image on: the tags act there first.
    first = prompt.text_start if row in ("position", "probe") else length - 1
    positions = np.arange(first, len(input_ids))
    return VerifyPrompt(label, row, exchange, image, sequence, answer_ids, positions)


def _cross(prompt: ContractPrompt) -> CrossPrompt | None:
    """The contract's own words in the form that models read."""
    cross = prompt.cross
    if cross is None:
        return None
    return CrossPrompt(cross.attended, cross.in_sequence, cross.tags, cross.visible)
