"""Tiling of a 12-megapixel image beside Pillow, on one core."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.preprocess import load_image, tile_image

from .conftest import Probe
from .pictures import KINDS


@pytest.fixture
def one_core() -> Iterator[None]:
    """Keep this process, and those that it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.slow
def test_tiling_is_three_times_as_fast(
    native_build: Path, one_core: None, repository: Path, tmp_path: Path
) -> None:
    config = NvlmConfig.from_directory(repository / "tests" / "data" / "preprocess")
    config = replace(config, vision=replace(config.vision, image_size=448))
    path = tmp_path / "image.jpg"
    path.write_bytes(KINDS["JPEG RGB, subsampling 2"](np.random.default_rng(0), 4000, 3000))
    image = load_image(path)
    probe = Probe(native_build / "tests" / "image_probe")
    python_ms = min(_milliseconds(image, config) for _ in range(5))
    native_ms = float(probe.ask("time", "best", 448, 6, 5, path))
    probe.close()
    assert native_ms * 3 <= python_ms, f"Pillow {python_ms:.0f} ms, native {native_ms:.0f} ms"


def _milliseconds(image: Image.Image, config: NvlmConfig) -> float:
    start = time.perf_counter()
    tile_image(image, config)
    return (time.perf_counter() - start) * 1000
