"""What a machine allows at most, against numbers worked by hand."""

from __future__ import annotations

import pytest

from nvlm_deploy.bench.limits import Limits, measure_limits
from nvlm_deploy.bench.pictures import jpeg_with_tiles
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import UsageError
from nvlm_deploy.preprocess.tiles import preprocess_images
from nvlm_deploy.synthetic.shapes import released_style_config
from tests.conftest import TINY_SHAPE

CONFIG = NvlmConfig.from_dict(released_style_config(TINY_SHAPE))


def test_milliseconds_of_bytes_and_operations() -> None:
    limits = Limits(2, read_gb_s=20.0, gops={"fp32": 100.0, "int8": 400.0})
    assert limits.read_ms(40e6) == pytest.approx(2.0)
    # Weight-only formats and 16 bits are FP32 on a CPU.
    operations = {"fp16": 1e9, "int8-dynamic": 2e9, "int8": 2e9}
    assert limits.compute_ms(operations) == pytest.approx(10 + 5 + 5)


def test_limits_are_measured() -> None:
    limits = measure_limits(1, rounds=1)
    assert limits.threads == 1
    assert limits.read_gb_s > 0
    assert set(limits.gops) == {"fp32", "int8"}
    assert min(limits.gops.values()) > 0


@pytest.mark.parametrize("tiles", [1, 3, 4, 5, 7])
def test_pictures_have_the_tiles_that_were_asked_for(tiles: int) -> None:
    (image,) = preprocess_images([jpeg_with_tiles(CONFIG, tiles, 0)], CONFIG)
    assert len(image) == tiles


@pytest.mark.parametrize("tiles", [2, 8])
def test_tiles_that_no_image_has(tiles: int) -> None:
    with pytest.raises(UsageError, match=f"no image has {tiles} tiles"):
        jpeg_with_tiles(CONFIG, tiles, 0)
