"""The tile contract, held against the published code's tiles and against a literal form of its rule."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.preprocess import choose_grid, normalize_tiles, preprocess_images, tile_image
from nvlm_deploy.preprocess.tiles import IMAGENET_MEAN, IMAGENET_STD, candidate_grids

from .conftest import Reference

# The order in which the released code tries the grids for 6 tiles: by number of tiles, then as a
# CPython set of these tuples happens to be laid out.
SET_ORDER_6 = [
    *[(1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (4, 1), (1, 4)],
    *[(2, 2), (1, 5), (5, 1), (6, 1), (2, 3), (1, 6), (3, 2)],
]


def reference_grid(width: int, height: int, tile_size: int, grids: list[tuple[int, int]]) -> tuple[int, int]:
    """The rule in words: the nearest aspect; of equally near ones a later one if the image is large."""
    distances = [abs(width / height - columns / rows) for columns, rows in grids]
    nearest = [grid for grid, d in zip(grids, distances, strict=True) if d == min(distances)]
    large = [g for g in nearest[1:] if width * height > tile_size * tile_size * g[0] * g[1] / 2]
    return large[-1] if large else nearest[0]


def set_order(max_tiles: int) -> list[tuple[int, int]]:
    """The released code's own list: this interpreter's set order, sorted by the number of tiles."""
    grids = {
        (i, j)
        for n in range(1, max_tiles + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if i * j <= max_tiles
    }
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


def test_tiles_equal_the_published_codes(reference: Reference, config: NvlmConfig) -> None:
    tiled = preprocess_images([reference.image(s["image"]) for s in reference.samples], config)
    for sample, image in zip(reference.samples, tiled, strict=True):
        assert list(image.crc32) == sample["tile_crc32"], sample["image"]
        assert len(image) == sample["tiles"]
        assert image.tiles.dtype == np.uint8
        assert image.tiles.shape == (sample["tiles"], 112, 112, 3)


def test_candidates_are_those_of_the_released_rule() -> None:
    assert sorted(candidate_grids(1, 6)) == sorted(SET_ORDER_6)
    assert len(candidate_grids(1, 12)) == 35
    assert candidate_grids(4, 6) == [(1, 4), (2, 2), (4, 1), (1, 5), (5, 1), (1, 6), (2, 3), (3, 2), (6, 1)]


def test_the_order_among_equally_many_tiles_cannot_matter() -> None:
    """Only grids of neighbouring aspects can be equally near; none of those have equally many tiles."""
    for max_tiles in range(1, 41):
        tiles_of_aspect: dict[Fraction, set[int]] = defaultdict(set)
        for columns, rows in candidate_grids(1, max_tiles):
            tiles_of_aspect[Fraction(columns, rows)].add(columns * rows)
        for nearer, farther in pairwise(sorted(tiles_of_aspect)):
            assert not tiles_of_aspect[nearer] & tiles_of_aspect[farther]


def test_every_small_size_gets_the_released_grid() -> None:
    for width in range(1, 90):
        for height in range(1, 90):
            expected = reference_grid(width, height, 28, SET_ORDER_6)
            assert choose_grid(width, height, 28) == expected, (width, height)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 14), st.sampled_from([28, 112, 448]))
@example(2500, 1000, 6, 448)
def test_any_size_and_limit_gets_the_released_grid(
    width: int, height: int, max_tiles: int, tile_size: int
) -> None:
    expected = reference_grid(width, height, tile_size, set_order(max_tiles))
    assert choose_grid(width, height, tile_size, 1, max_tiles) == expected


@pytest.mark.parametrize("max_tiles", range(1, 15))
def test_exact_ties_get_the_released_grid(max_tiles: int) -> None:
    """Images half-way between two neighbouring aspects, small and large, for every limit."""
    aspects = sorted({Fraction(*grid) for grid in candidate_grids(1, max_tiles)})
    ties = [(a + b) / 2 for a, b in pairwise(aspects)] + aspects
    for tie in ties:
        for scale in (1, 7, 150):
            width, height = tie.numerator * scale, tie.denominator * scale
            expected = reference_grid(width, height, 112, set_order(max_tiles))
            assert choose_grid(width, height, 112, 1, max_tiles) == expected


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((633, 633), (1, 1)),  # 400,689 pixels, not over half of 2 x 2 tiles
        ((634, 634), (2, 2)),
        ((2, 1), (2, 1)),  # only the aspect counts: enlarged
        ((500, 200), (2, 1)),  # half-way between 2:1 and 3:1: by the area
        ((1000, 400), (3, 1)),
        ((1, 100_000), (1, 6)),
        ((100_000, 1), (6, 1)),
        ((1920, 1080), (2, 1)),
        ((640, 480), (3, 2)),
    ],
)
def test_known_grids(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert choose_grid(*size, tile_size=448) == grid


def test_exactly_half_the_pixels_are_not_enough() -> None:
    """252 x 1120 is half-way between 1 x 4 and 1 x 5 tiles, and has half the pixels of five 336 px tiles."""
    assert 252 * 1120 * 2 == 336 * 336 * 5
    assert choose_grid(252, 1120, tile_size=336) == (1, 4)
    assert choose_grid(252, 1120, tile_size=335) == (1, 5)


def test_tiles_are_row_by_row_and_the_thumbnail_is_last(config: NvlmConfig) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 455, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    tiled = tile_image(image, config)
    assert tiled.grid == (3, 2)
    whole = image.resize((3 * 112, 2 * 112))  # Pillow's default filter, as the released code calls it
    boxes = [(x, y, x + 112, y + 112) for y in (0, 112) for x in (0, 112, 224)]
    expected = [np.asarray(whole.crop(box)) for box in boxes] + [np.asarray(image.resize((112, 112)))]
    np.testing.assert_array_equal(tiled.tiles, np.stack(expected))


def test_one_tile_is_its_own_thumbnail(config: NvlmConfig) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
    tiled = tile_image(image, config)
    assert tiled.grid == (1, 1)
    np.testing.assert_array_equal(tiled.tiles, np.asarray(image.resize((112, 112)))[None])


def test_min_tiles_is_respected(config: NvlmConfig) -> None:
    image = Image.new("RGB", (50, 50))
    assert tile_image(image, replace(config, min_tiles=4)).grid == (2, 2)


def test_the_report_is_json(config: NvlmConfig) -> None:
    tiled = tile_image(Image.new("RGB", (200, 100)), config)
    report = json.loads(json.dumps(tiled.report()))
    assert report == {"tiles": 3, "grid": [2, 1], "crc32": list(tiled.crc32)}


def test_only_rgb_is_tiled(config: NvlmConfig) -> None:
    with pytest.raises(UsageError, match="mode 'L'"):
        tile_image(Image.new("L", (9, 9)), config)


def test_errors_count_the_images(config: NvlmConfig) -> None:
    good = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(NvlmError, match="image 2"):
        preprocess_images([good, b"junk"], config)


def test_normalization_is_bit_equal_to_torchs() -> None:
    tiles = np.random.default_rng(3).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    tiles[0].reshape(-1)[: 3 * 256] = np.repeat(np.arange(256), 3)  # every value in every channel
    x_TCHW = torch.from_numpy(tiles).permute(0, 3, 1, 2).to(torch.float32).div(255)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    output = normalize_tiles(tiles)
    assert output.dtype == np.float32
    assert output.flags.c_contiguous
    np.testing.assert_array_equal(output, x_TCHW.sub(mean).div(std).numpy())
