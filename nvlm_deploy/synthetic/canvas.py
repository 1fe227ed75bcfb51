"""A page to draw on that remembers what was written, and where each character stands.

Lengths are in units of 1/112 of a tile, so the same page can be drawn for 112 px and for 448 px tiles.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

UNITS_PER_TILE = 112

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Glyph:
    """One character and its center, as fractions of the page's width and height."""

    character: str
    x: float
    y: float


@lru_cache(maxsize=64)
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(pixels)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("generated documents need a Pillow that is built with FreeType")
    return font


@dataclass(slots=True)
class Canvas:
    """An RGB page of `width` x `height` units, drawn at `scale` pixels per unit."""

    width: float
    height: float
    scale: float
    background: Color
    ink: Color
    image: Image.Image = field(init=False)
    draw: ImageDraw.ImageDraw = field(init=False)
    glyphs: list[Glyph] = field(init=False, default_factory=list)
    words: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        size = (round(self.width * self.scale), round(self.height * self.scale))
        self.image = Image.new("RGB", size, self.background)
        self.draw = ImageDraw.Draw(self.image)

    @classmethod
    def blank(cls, rng: random.Random, columns: int, rows: int, tile_size: int) -> Canvas:
        """A page whose aspect ratio leads to `columns` x `rows` tiles, never exactly; seldom pure white."""
        light = rng.randint(225, 255)
        background = tuple(min(255, light + rng.randint(-12, 12)) for _ in range(3))
        ink = tuple(rng.randint(0, 90) for _ in range(3))
        return cls(
            width=UNITS_PER_TILE * columns * rng.uniform(0.96, 1.04),
            height=UNITS_PER_TILE * rows * rng.uniform(0.96, 1.04),
            scale=tile_size / UNITS_PER_TILE,
            background=background,  # type: ignore[arg-type]
            ink=ink,  # type: ignore[arg-type]
        )

    def text_width(self, text: str, size: float) -> float:
        """Width of `text` in units at a font size in units."""
        return float(_font(round(size * self.scale)).getlength(text)) / self.scale

    def text(self, x: float, y: float, text: str, size: float, color: Color | None = None) -> None:
        """Write `text` with its left end at `x` and its line's middle at `y`."""
        font = _font(round(size * self.scale))
        left = x * self.scale
        self.words.append(text)
        self.draw.text((left, y * self.scale), text, font=font, fill=color or self.ink, anchor="lm")
        for index, character in enumerate(text):
            if character != " ":
                start, end = font.getlength(text[:index]), font.getlength(text[: index + 1])
                center = (left + (start + end) / 2) / self.image.width
                self.glyphs.append(Glyph(character, center, y / self.height))

    def line(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Draw a rule."""
        ends = [v * self.scale for v in (x0, y0, x1, y1)]
        self.draw.line(ends, fill=self.ink, width=max(1, round(self.scale)))

    def box(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
        """Draw a filled rectangle."""
        self.draw.rectangle([v * self.scale for v in (x0, y0, x1, y1)], fill=color)
