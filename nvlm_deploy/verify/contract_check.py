"""Hold the tiles and token ids of an engine's runtime against the independent statement of the contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from nvlm_deploy.preprocess.prompt import CrossPrompt, Prompt
from nvlm_deploy.preprocess.tiles import TiledImage
from nvlm_deploy.verify.contract import Contract, ContractTiles
from nvlm_deploy.verify.prompts import VerifyPrompt

_CONTEXT = 6
_QUESTION = "What is this?"


class Preprocessor(Protocol):
    """What makes token ids and tiles: an engine's runtime."""

    def preprocess(self, prompt: str, images: Any = ()) -> tuple[Prompt, tuple[TiledImage, ...]]: ...


@dataclass(frozen=True, slots=True)
class ContractResult:
    """How many inputs were compared, and what differed, in sentences; `checked` inputs of each kind."""

    checked: int
    wrong_ids: tuple[str, ...]
    wrong_tiles: tuple[str, ...]


def check_contract(
    engine: Preprocessor, contract: Contract, prompts: Sequence[VerifyPrompt]
) -> ContractResult:
    """Compare the runtime's tiles and ids for the prompts and for pictures of every shape and mode."""
    cases = [(p.label, p.exchange.question, p.image) for p in prompts]
    cases += [(name, _QUESTION, picture) for name, picture in shape_pictures(contract)]
    wrong_ids, wrong_tiles = [], []
    for label, question, picture in cases:
        prompt, images = engine.preprocess(question, [] if picture is None else [picture])
        tags: Sequence[str] = ()
        if picture is not None:
            expected = contract.tiles(picture)
            tags = contract.tags(len(expected))
            problem = tile_difference(expected, images[0].tiles)
            if problem:
                wrong_tiles.append(f"{label}: {problem}")
        wanted = contract.prompt(question, tags)
        problem = id_difference(contract, wanted.input_ids, prompt.input_ids)
        problem = problem or cross_difference(contract, wanted.cross, prompt.cross)
        if problem:
            wrong_ids.append(f"{label}: {problem}")
    return ContractResult(len(cases), tuple(wrong_ids), tuple(wrong_tiles))


def shape_pictures(contract: Contract) -> Iterator[tuple[str, Image.Image]]:
    """Small pictures of every grid, squares on both sides of the tie, and modes other than RGB."""
    limit, side = contract.max_tiles, contract.side
    for columns in range(1, limit + 1):
        for rows in range(1, limit // columns + 1):
            yield f"picture {columns} x {rows}", _picture(columns * 31 + 1, rows * 31)
    for share in (1.3, 1.5):
        edge = round(share * side)
        yield f"square of {edge} px", _picture(edge, edge)
    for mode in ("RGBA", "L", "P", "CMYK"):
        yield f"picture in mode {mode}", _picture(90, 40).convert(mode)


def tile_difference(expected: npt.NDArray[np.uint8], found: npt.NDArray[np.uint8]) -> str | None:
    """What is wrong with uint8 tiles [T, I, I, 3]; None if they are equal."""
    if expected.shape != found.shape:
        return f"tiles {list(found.shape)}, not {list(expected.shape)}"
    if np.array_equal(expected, found):
        return None
    order = [_index(expected, tile) for tile in found]
    known = [index for index in order if index is not None]
    if len(known) == len(order) and sorted(known) == list(range(len(order))):
        last = len(order) - 1
        if order.index(last) != last:
            return f"the thumbnail is tile {order.index(last) + 1} of {len(order)}, and must be the last"
        return f"the order of the tiles is {[index + 1 for index in known]}"
    wrong = next(i for i in range(len(found)) if not np.array_equal(expected[i], found[i]))
    most = int(np.abs(expected[wrong].astype(int) - found[wrong].astype(int)).max())
    return f"tile {wrong + 1} of {len(found)} has other pixels, by up to {most} of 255"


def id_difference(
    contract: Contract, expected: npt.NDArray[np.int64], found: npt.NDArray[np.int64]
) -> str | None:
    """Where token ids differ first, in words; None if they are equal."""
    if np.array_equal(expected, found):
        return None
    common = min(len(expected), len(found))
    different = np.flatnonzero(expected[:common] != found[:common])
    place = int(different[0]) if len(different) else common
    return (
        f"position {place} of {len(expected)} begins {_spell(contract, found, place)}, "
        f"and must begin {_spell(contract, expected, place)}"
    )


def cross_difference(
    contract: Contract, expected: ContractTiles | None, found: CrossPrompt | None
) -> str | None:
    """What is wrong with tiles in cross-attention, in words; None if all is as the contract says."""
    if expected is None and found is None:
        return None
    if expected is None or found is None:
        return f"{'nothing is' if found is None else 'tiles are'} in cross-attention"
    for name, wanted, given in (
        ("in cross-attention", expected.attended, found.tiles),
        ("in the sequence", expected.in_sequence, found.sequence_tiles),
    ):
        if not np.array_equal(wanted, given):
            return f"tiles {(given + 1).tolist()} are {name}, and must be {(wanted + 1).tolist()}"
    tags = [[contract.tokenizer.decode(list(tag)) for tag in side.tags] for side in (expected, found)]
    if tags[0] != tags[1]:
        return f"the tags of tiles in cross-attention are {tags[1]}, and must be {tags[0]}"
    if expected.visible.shape != found.visible.shape:
        return f"{len(found.visible)} tokens say what they see, and {len(expected.visible)} must"
    different = np.flatnonzero((expected.visible != found.visible).any(axis=1))
    if len(different):
        place = int(different[0])
        sees, must = found.visible[place].tolist(), expected.visible[place].tolist()
        return f"position {place} of {len(expected.visible)} sees tiles {sees}, and must see {must}"
    return None


def _spell(contract: Contract, ids: npt.NDArray[np.int64], place: int) -> str:
    """The text around a place, without placeholders."""
    shown = [int(i) for i in ids[max(place - _CONTEXT, 0) : place + _CONTEXT] if i != contract.placeholder_id]
    return repr(contract.tokenizer.decode(shown, skip_special_tokens=False))


def _index(tiles: npt.NDArray[np.uint8], tile: npt.NDArray[np.uint8]) -> int | None:
    return next((i for i in range(len(tiles)) if np.array_equal(tiles[i], tile)), None)


def _picture(width: int, height: int) -> Image.Image:
    """A gradient with a grain, so that no two tiles are alike."""
    y, x = np.mgrid[:height, :width]
    grain = np.random.default_rng(width * 1000 + height).integers(0, 40, (height, width))
    channels = [x * 200 // width + grain, y * 200 // height + grain, (x + y) % 200 + grain]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
