"""Image files of every kind that the native decoders read, with random pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Maker = Callable[[np.random.Generator, int, int], bytes]

# First column, first row, step of columns and of rows for each of the seven passes of Adam7.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def random_pixels(random: np.random.Generator, width: int, height: int, channels: int = 3) -> Pixels:
    """Blocks of color with noise in them, so that both edges and gradients are there."""
    blocks = random.integers(0, 256, (height // 9 + 1, width // 9 + 1, channels))
    whole = np.repeat(np.repeat(blocks, 9, axis=0), 9, axis=1)[:height, :width]
    return np.clip(whole + random.integers(-40, 41, whole.shape), 0, 255).astype(np.uint8)


def write_png(
    samples: NDArray[np.generic], depth: int, color: int, *, interlaced: bool = False, extra: bytes = b""
) -> bytes:
    """A PNG of samples [H, W, channels], also in the forms that Pillow reads and does not write."""
    height, width = samples.shape[:2]
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in _PASSES] if interlaced else [samples]
    lines = b"".join(b"\0" + _packed(row, depth) for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _packed(row: NDArray[np.generic], depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    if depth == 8:
        return row.astype(np.uint8).tobytes()
    bits = np.unpackbits(row.reshape(-1, 1).astype(np.uint8), axis=1)[:, 8 - depth :]
    return np.packbits(bits.reshape(-1)).tobytes()


def _raw_png(depth: int, color: int, channels: int, interlaced: bool) -> Maker:
    def make(random: np.random.Generator, width: int, height: int) -> bytes:
        samples = random.integers(0, 1 << depth, (height, width, channels))
        if depth == 16 and color == 0:
            samples = np.where(random.integers(0, 2, samples.shape), samples & 0xFF, samples)
        return write_png(samples, depth, color, interlaced=interlaced)

    return make


def _palette_png(depth: int, colors: int, interlaced: bool, transparency: bytes = b"") -> Maker:
    def make(random: np.random.Generator, width: int, height: int) -> bytes:
        palette = chunk(b"PLTE", random.integers(0, 256, 3 * colors, dtype=np.uint8).tobytes())
        extra = palette + (chunk(b"tRNS", transparency) if transparency else b"")
        samples = random.integers(0, colors, (height, width, 1))
        return write_png(samples, depth, 3, interlaced=interlaced, extra=extra)

    return make


def _saved(mode: str, kind: str, **options: Any) -> Maker:
    def make(random: np.random.Generator, width: int, height: int) -> bytes:
        channels = {"1": 1, "L": 1, "LA": 2, "RGBA": 4, "CMYK": 4}.get(mode, 3)
        pixels = random_pixels(random, width, height, channels)
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels, None)
        if mode == "P":
            image = image.quantize(50)
        elif mode == "CMYK":
            image = Image.merge("CMYK", Image.fromarray(pixels, "RGBA").split())
        elif mode == "1":
            image = image.convert("1")
        buffer = io.BytesIO()
        image.save(buffer, format=kind, **options)
        return buffer.getvalue()

    return make


def _kinds() -> dict[str, Maker]:
    kinds: dict[str, Maker] = {
        "PNG 1": _saved("1", "PNG"),
        "PNG L": _saved("L", "PNG"),
        "PNG LA": _saved("LA", "PNG"),
        "PNG P": _saved("P", "PNG"),
        "PNG RGB": _saved("RGB", "PNG"),
        "PNG RGBA": _saved("RGBA", "PNG"),
        "PNG RGB with a transparent color": _saved("RGB", "PNG", transparency=(9, 9, 9)),
        "PNG P, one transparent index": _saved("P", "PNG", transparency=3),
        "PNG P, transparency per index": _palette_png(8, 200, False, bytes(range(200))),
        "JPEG L": _saved("L", "JPEG"),
        "JPEG CMYK": _saved("CMYK", "JPEG", quality=90),
        "JPEG CMYK progressive": _saved("CMYK", "JPEG", progressive=True),
    }
    for depth, color, channels in ((1, 0, 1), (2, 0, 1), (4, 0, 1), (8, 0, 1), (16, 0, 1), (16, 2, 3),
                                   (8, 4, 2), (16, 4, 2), (8, 6, 4), (16, 6, 4)):  # fmt: skip
        for interlaced in (False, True):
            name = f"PNG color type {color}, {depth} bits{', interlaced' * interlaced}"
            kinds[name] = _raw_png(depth, color, channels, interlaced)
    for depth, colors in ((1, 2), (2, 4), (2, 3), (4, 11), (8, 256)):
        for interlaced in (False, True):
            name = f"PNG palette of {colors}, {depth} bits{', interlaced' * interlaced}"
            kinds[name] = _palette_png(depth, colors, interlaced)
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            name = f"JPEG RGB, subsampling {subsampling}{', progressive' * progressive}"
            options = {
                "subsampling": subsampling,
                "progressive": progressive,
                "quality": 40 + 20 * subsampling,
            }
            kinds[name] = _saved("RGB", "JPEG", **options)
    return kinds


KINDS = _kinds()


def write_all(folder: Path, sizes: Sequence[tuple[int, int]], seed: int) -> dict[str, Path]:
    """One image file per size, of one kind after the other; by a name that says what it is."""
    random = np.random.default_rng(seed)
    written = {}
    for index, (width, height) in enumerate(sizes):
        kind = list(KINDS)[index % len(KINDS)]
        path = folder / f"{index}.bin"
        path.write_bytes(KINDS[kind](random, width, height))
        written[f"{index}: {kind}, {width} x {height}"] = path
    return written
