"""The independent contract against what the published code made of images, and the check that uses it."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer, choose_grid
from nvlm_deploy.runtime import Engine
from nvlm_deploy.verify.contract import Contract
from nvlm_deploy.verify.contract_check import check_contract, id_difference, shape_pictures, tile_difference
from nvlm_deploy.verify.measure import PromptSet

DATA = Path(__file__).resolve().parents[2] / "data" / "preprocess"
PUBLISHED: dict[str, Any] = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
CONTRACT = Contract(DATA)


@pytest.mark.parametrize("sample", PUBLISHED["samples"], ids=lambda sample: sample["image"])
def test_tiles_and_ids_are_those_of_the_published_code(sample: dict[str, Any]) -> None:
    tiles = CONTRACT.tiles(Image.open(DATA / "images" / sample["image"]))
    assert [zlib.crc32(tile.tobytes()) for tile in tiles] == sample["tile_crc32"]
    prompt = CONTRACT.prompt(sample["question"], CONTRACT.tags(len(tiles)))
    assert prompt.input_ids.tolist() == sample["input_ids"]


def test_a_question_without_an_image_is_that_of_the_published_code() -> None:
    published = PUBLISHED["text_only"]
    assert CONTRACT.prompt(published["question"]).input_ids.tolist() == published["input_ids"]


def test_the_released_vocabulary_merges_the_first_tag(shared_data_dir: Path, tmp_path: Path) -> None:
    shutil.copyfile(shared_data_dir / "nvlm-d-72b.config.json", tmp_path / "config.json")
    with gzip.open(shared_data_dir / "qwen2-tokenizer.json.gz", "rb") as file:
        (tmp_path / "tokenizer.json").write_bytes(file.read())
    released = Contract(tmp_path)
    ids = released.prompt("Hi", released.tags(7)).input_ids.tolist()
    image = ids.index(46465)
    # <Image, ><, tile, _, 1, > and the first placeholder; later tags have their own bracket.
    assert ids[image : image + 7] == [46465, 1784, 21094, 62, 16, 29, 151654]
    assert ids[image + 6 + 256 : image + 12 + 256] == [27, 21094, 62, 17, 29, 151654]
    assert ids.count(151654) == 7 * 256


@pytest.mark.parametrize("mode", ["hf", "megatron"])
@pytest.mark.parametrize("tiles", [0, 1, 5])
def test_both_modes_agree_with_the_builder(mode: Any, tiles: int) -> None:
    builder = PromptBuilder(Tokenizer.from_directory(DATA), NvlmConfig.from_directory(DATA), mode)
    contract = Contract(DATA, mode)
    expected = builder.build("Which tile holds 42?", [tiles] if tiles else [])
    prompt = contract.prompt("Which tile holds 42?", contract.tags(tiles) if tiles else ())
    assert prompt.input_ids.tolist() == expected.input_ids.tolist()
    assert prompt.visual_positions.tolist() == expected.visual_positions.tolist()


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_grids_agree_with_the_tiler(width: int, height: int) -> None:
    assert CONTRACT.grid(width, height) == choose_grid(width, height, CONTRACT.side)


def test_pictures_reach_every_grid_and_both_sides_of_the_tie() -> None:
    grids = {CONTRACT.grid(*picture.size) for _, picture in shape_pictures(CONTRACT)}
    assert len(grids) == 14
    squares = {name: CONTRACT.grid(*p.size) for name, p in shape_pictures(CONTRACT) if "square" in name}
    assert sorted(squares.values()) == [(1, 1), (2, 2)]


def test_the_runtime_holds_the_contract(fp32_bundle: Path, prompts: PromptSet) -> None:
    result = check_contract(Engine.open(fp32_bundle), Contract(fp32_bundle), prompts.asked)
    assert (result.wrong_ids, result.wrong_tiles) == ((), ())
    assert result.checked > 20


def tiles_of(*values: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([np.full((4, 4, 3), value, np.uint8) for value in values])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (tiles_of(3, 1, 2), "the thumbnail is tile 1 of 3, and must be the last"),
        (tiles_of(2, 1, 3), r"the order of the tiles is \[2, 1, 3\]"),
        (tiles_of(1, 9, 3), "tile 2 of 3 has other pixels, by up to 7 of 255"),
        (tiles_of(1, 2), r"tiles \[2, 4, 4, 3\], not \[3, 4, 4, 3\]"),
    ],
)
def test_what_is_wrong_with_tiles_is_said(found: Any, words: str) -> None:
    difference = tile_difference(tiles_of(1, 2, 3), found)
    assert difference is not None
    assert re.fullmatch(words, difference)


def test_equal_tiles_and_ids_are_no_difference() -> None:
    ids = CONTRACT.prompt("Hello", CONTRACT.tags(3)).input_ids
    assert tile_difference(tiles_of(1, 2), tiles_of(1, 2)) is None
    assert id_difference(CONTRACT, ids, ids.copy()) is None


def test_the_first_other_id_is_spelled() -> None:
    tags = CONTRACT.tags(3)
    right = CONTRACT.prompt("Hello", tags).input_ids
    wrong = CONTRACT.prompt("Hello", ["<tile_2>", "<tile_3>", tags[-1]]).input_ids
    difference = id_difference(CONTRACT, right, wrong)
    assert difference is not None
    found, expected = difference.split("must begin")
    assert "tile_2" in found
    assert "tile_1" in expected
    shorter = id_difference(CONTRACT, right, right[:-1])
    assert shorter is not None
    assert f"position {len(right) - 1} of {len(right)}" in shorter
