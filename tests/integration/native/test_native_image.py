"""Image files to tiles: the native runtime gives the bytes that Pillow and the Python package give."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.preprocess import load_image, tile_image

from .conftest import Probe
from .pictures import KINDS, random_pixels, write_all

TILE_SIZE = 56


@pytest.fixture(scope="module")
def config(repository: Path) -> NvlmConfig:
    return NvlmConfig.from_directory(repository / "tests" / "data" / "preprocess")


def python_tiles(config: NvlmConfig, path: Path, tile_size: int, max_tiles: int) -> str:
    rule = replace(config, vision=replace(config.vision, image_size=tile_size), max_tiles=max_tiles)
    tiled = tile_image(load_image(path), rule)
    return " ".join(map(str, (*tiled.grid, *tiled.crc32)))


def test_golden_images(golden_dir: Path, image_probe: Probe) -> None:
    tile_size = json.loads((golden_dir / "config.json").read_text())["force_image_size"]
    for sample in json.loads((golden_dir / "expected.json").read_text())["samples"]:
        path = golden_dir / "images" / sample["image"]
        for kernels in image_probe.ask("kernels").split():
            answer = image_probe.ask("tiles", kernels, tile_size, 6, path).split()
            assert [int(crc) for crc in answer[2:]] == sample["tile_crc32"], (path, kernels)


def test_500_generated_images(config: NvlmConfig, image_probe: Probe, tmp_path: Path) -> None:
    random = np.random.default_rng(20)
    sides = np.exp(random.uniform(0, np.log(500), (500, 2))).astype(int)
    images = write_all(tmp_path, [(int(w), int(h)) for w, h in sides], seed=21)
    kernels = image_probe.ask("kernels").split()
    wrong = {}
    for index, (name, path) in enumerate(images.items()):
        max_tiles = 1 + index % 12
        used = kernels[index // len(KINDS) % len(kernels)]
        expected = python_tiles(config, path, TILE_SIZE, max_tiles)
        found = image_probe.ask("tiles", used, TILE_SIZE, max_tiles, path)
        if found != expected:
            wrong[name] = (used, found, expected)
    assert wrong == {}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    target=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    seed=st.integers(0, 1000),
)
def test_resizes_are_pillows(
    image_probe: Probe, tmp_path: Path, size: tuple[int, int], target: tuple[int, int], seed: int
) -> None:
    path = tmp_path / "image.png"
    # Extremes only: the filter overshoots and is clipped at both ends.
    pixels = np.random.default_rng(seed).integers(0, 2, (size[1], size[0], 3), dtype=np.uint8) * 255
    image = Image.fromarray(pixels)
    image.save(path, compress_level=1)
    expected = zlib.crc32(image.resize(target, Image.Resampling.BICUBIC).tobytes())
    for kernels in image_probe.ask("kernels").split():
        assert image_probe.ask("resize", kernels, *target, path) == str(expected), kernels


@pytest.mark.parametrize("size", [(1, 70_000), (70_000, 1), (20_001, 3), (2, 2), (1, 1)])
def test_extreme_shapes(
    config: NvlmConfig, image_probe: Probe, tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(random_pixels(np.random.default_rng(1), *size)).save(path)
    for kernels in image_probe.ask("kernels").split():
        found = image_probe.ask("tiles", kernels, 448, 6, path)
        assert found == python_tiles(config, path, 448, 6), kernels


def test_files_that_were_cut_give_pythons_pixels_or_none(image_probe: Probe, tmp_path: Path) -> None:
    """Python goes on where a PNG lacks its checksums alone; natively every cut within the data is refused."""
    random = np.random.default_rng(5)
    path = tmp_path / "cut"
    for kind in ("PNG RGB", "PNG P", "JPEG L", "JPEG RGB, subsampling 0, progressive", "JPEG CMYK"):
        whole = KINDS[kind](random, 40, 30)
        for size in [*random.integers(0, len(whole), 20), *range(len(whole) - 15, len(whole))]:
            path.write_bytes(whole[:size])
            answer = image_probe.ask("resize", "best", 40, 30, path)
            if not answer.startswith("error 1 "):
                assert answer == str(zlib.crc32(load_image(path).tobytes())), (kind, size)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"GIF89a and more", "is neither a JPEG nor a PNG file"),
        (b"\xff\xd8\xff\xe0 no more", "is corrupt or truncated"),
        (b"\x89PNG\r\n\x1a\n no more", "is corrupt or truncated"),
    ],
)
def test_no_image(image_probe: Probe, tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    answer = image_probe.ask("tiles", "best", 56, 6, path)
    assert answer.startswith(f"error 1 {path}")
    assert text in answer


def test_missing_and_unreadable_files(image_probe: Probe, tmp_path: Path) -> None:
    missing = tmp_path / "missing.png"
    assert image_probe.ask("tiles", "best", 56, 6, missing) == f"error 1 the image {missing} does not exist"
    answer = image_probe.ask("tiles", "best", 56, 6, tmp_path)
    assert answer == f"error 1 the image {tmp_path} cannot be read: Is a directory"
