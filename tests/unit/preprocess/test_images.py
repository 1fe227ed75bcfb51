"""Image sources: the reference's pixels, and a clear error for everything that is no image."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.preprocess import load_image


def noise(height: int = 24, width: int = 40, channels: int = 3) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A valid PNG header for any size, and next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def transparent_palette() -> bytes:
    image = Image.fromarray(noise()).quantize(16)
    return encoded(image, "PNG", transparency=bytes(range(0, 256, 16)))


RGB = Image.fromarray(noise())
FILES: dict[str, Callable[[], bytes]] = {
    "P": lambda: encoded(RGB.quantize(64), "PNG"),
    "P, one transparent index": lambda: encoded(RGB.quantize(64), "PNG", transparency=3),
    "P, transparency per index": transparent_palette,
    "P, GIF": lambda: encoded(RGB.quantize(64), "GIF"),
    "L": lambda: encoded(RGB.convert("L"), "PNG"),
    "LA": lambda: encoded(Image.merge("LA", [RGB.getchannel(0), RGB.getchannel(1)]), "PNG"),
    "RGBA": lambda: encoded(Image.fromarray(noise(channels=4), "RGBA"), "PNG"),
    "CMYK": lambda: encoded(Image.fromarray(noise(channels=4), "CMYK"), "JPEG"),
    "1": lambda: encoded(RGB.convert("1"), "PNG"),
    "I;16": lambda: encoded(Image.fromarray(noise()[..., 0].astype(np.uint16) * 40), "PNG"),
    "RGB, progressive JPEG": lambda: encoded(RGB, "JPEG", progressive=True),
    "RGB, WebP": lambda: encoded(RGB, "WEBP"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_pixels_are_those_of_pillows_convert(name: str, tmp_path: Path) -> None:
    data = FILES[name]()
    path = tmp_path / "image"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as opened:
            assert name.startswith(opened.mode)
            expected = np.asarray(opened.convert("RGB"))
    # Warnings are errors here, so none leaves load_image.
    for source in (path, str(path), data, Image.open(io.BytesIO(data))):
        image = load_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), expected)


def test_sixteen_bit_grey_saturates_as_in_pillow() -> None:
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    data = encoded(Image.fromarray(values), "PNG")
    assert np.asarray(load_image(data))[0, :, 0].tolist() == [0, 255, 255, 255]


def test_arrays_are_taken_as_rgb_or_grey() -> None:
    rgb = noise()
    np.testing.assert_array_equal(np.asarray(load_image(rgb)), rgb)
    np.testing.assert_array_equal(np.asarray(load_image(rgb[::2, ::-1])), rgb[::2, ::-1])
    grey = np.asarray(load_image(rgb[..., 0]))
    np.testing.assert_array_equal(grey, np.repeat(rgb[..., :1], 3, axis=2))


def test_the_result_is_independent_of_its_source() -> None:
    array = noise()
    for source in (array, Image.fromarray(array)):
        image = load_image(source)
        image.paste((0, 0, 0), (0, 0, 40, 24))
        assert np.asarray(source).max() > 0


def test_exif_orientation_is_left_alone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(RGB, "JPEG", exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert load_image(data).size == RGB.size


PNG, JPEG = encoded(RGB, "PNG"), encoded(RGB, "JPEG")
BAD_FILES = {
    "empty": (b"", "is empty"),
    "text": (b"not an image at all", "is not an image"),
    "truncated png": (PNG[: len(PNG) // 2], "corrupt or truncated"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "corrupt or truncated"),
    "zero size": (png_that_claims(0, 0), "."),
    "bomb beyond Pillow's error": (png_that_claims(30_000, 30_000), "too large"),
    "bomb beyond Pillow's warning": (png_that_claims(12_000, 9_000), "too large: 12,000 x 9,000 pixels"),
    "flipped byte": (PNG[:80] + bytes([PNG[80] ^ 0xFF]) + PNG[81:], "corrupt or truncated"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    data, message = BAD_FILES[name]
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    with pytest.raises(NvlmError, match=message) as caught:
        load_image(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    with pytest.raises(NvlmError, match="the third picture"):
        load_image(data, label="the third picture")


def test_a_bomb_is_found_even_if_pillows_own_limit_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(NvlmError, match="too large: 30,000 x 30,000 pixels"):
        load_image(png_that_claims(30_000, 30_000))


def test_missing_and_unreadable_paths(tmp_path: Path) -> None:
    with pytest.raises(NvlmError, match=r"nowhere\.png does not exist"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(NvlmError, match="cannot be read: Is a directory"):
        load_image(tmp_path)
    with pytest.raises(NvlmError, match="cannot be read"):
        load_image("a\0b.png")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused_with_dtype_and_shape(array: npt.NDArray[Any]) -> None:
    with pytest.raises(UsageError, match=r"dtype \w+ and shape") as caught:
        load_image(array)
    assert "uint8" in str(caught.value.hint)


def test_sources_without_pixels_and_without_sense() -> None:
    with pytest.raises(NvlmError, match="it has no pixels"):
        load_image(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(NvlmError, match="has no pixels: 0 x 5"):
        load_image(Image.new("RGB", (0, 5)))
    with pytest.raises(UsageError, match="is a int"):
        load_image(3)  # type: ignore[arg-type]


def test_warning_filters_are_restored() -> None:
    before = list(warnings.filters)
    load_image(transparent_palette())
    with pytest.raises(NvlmError):
        load_image(b"x")
    assert list(warnings.filters) == before


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([PNG, JPEG, FILES["P, GIF"](), FILES["1"]()]), st.data())
def test_damaged_files_end_in_an_image_or_in_our_error(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 6))):
        damaged[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    damaged = damaged[: draw.draw(st.integers(0, len(data)))]
    with contextlib.suppress(NvlmError):
        assert load_image(bytes(damaged)).mode == "RGB"
