"""Generated documents with questions: signs, pages of words, receipts, tables and bar charts.

`document(split, index)` is a pure function of its arguments (and of Pillow's font), so all splits are without
limit and never share a seed: what is learnt is learnt from train, choices are made on validation, and answers
are measured on heldout.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from nvlm_deploy.synthetic.canvas import UNITS_PER_TILE, Canvas, Color, Glyph
from nvlm_deploy.synthetic.words import WORDS

Split = Literal["train", "validation", "heldout"]
Grid = tuple[int, int]
FONT_SIZES = (26.0, 30.0)
# Least distance, in units, of a character's center from an edge between tiles.
MARGIN_X, MARGIN_Y = 3.5, 8.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question about a document and its only right answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Document:
    """A page, what can be asked about it, its text in reading order, and where its characters stand."""

    kind: str
    image: Image.Image
    exchanges: tuple[Exchange, ...]
    transcript: str
    glyphs: tuple[Glyph, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out or training sample: a page and one question about it."""

    kind: str
    image: Image.Image
    question: str
    answer: str


def document(split: Split, index: int, tile_size: int = 112, kinds: tuple[str, ...] = ()) -> Document:
    """Draw the `index`-th document of a split, of one of `kinds` (all that have questions by default)."""
    rng = random.Random(f"{split}-{index}")
    kind = rng.choice(kinds or KINDS)
    grids, paint = _PAINTERS[kind]
    columns, rows = rng.choice(grids)
    while True:
        canvas = Canvas.blank(rng, columns, rows, tile_size)
        exchanges = paint(canvas, rng, rng.uniform(*FONT_SIZES))
        if not _cuts_a_glyph(canvas.glyphs, columns, rows):
            text = " ".join(canvas.words)
            return Document(kind, canvas.image, tuple(exchanges), text, tuple(canvas.glyphs))


def samples(split: Split, count: int, start: int = 0, tile_size: int = 112) -> Iterator[Sample]:
    """Yield `count` samples: one document and one of its questions each."""
    for index in range(start, start + count):
        page = document(split, index, tile_size)
        exchange = random.Random(f"{split}-{index}-question").choice(page.exchanges)
        yield Sample(page.kind, page.image, exchange.question, exchange.answer)


def _cuts_a_glyph(glyphs: list[Glyph], columns: int, rows: int) -> bool:
    """Whether an edge between two tiles runs through a character: half a digit cannot be read."""
    return any(
        _edge_distance(g.x, columns) < MARGIN_X or _edge_distance(g.y, rows) < MARGIN_Y for g in glyphs
    )


def _edge_distance(fraction: float, tiles: int) -> float:
    """Distance in units from a place on the page, as a fraction, to the nearest inner edge of a tile."""
    if tiles == 1:
        return math.inf
    edge = min(max(round(fraction * tiles), 1), tiles - 1)
    return abs(fraction * tiles - edge) * UNITS_PER_TILE


def _sign(canvas: Canvas, rng: random.Random, size: float) -> list[Exchange]:
    """One word or number, anywhere on a page of one tile."""
    text = rng.choice(WORDS) if rng.random() < 0.5 else str(rng.randint(10, 9999))
    x = rng.uniform(6, canvas.width - canvas.text_width(text, size) - 6)
    canvas.text(x, rng.uniform(16, canvas.height - 16), text, size)
    return [Exchange("What does the sign say?", text)]


def _lines(canvas: Canvas, rng: random.Random, size: float) -> list[Exchange]:
    """A tile full of words and numbers: nothing to ask about, much to read."""
    y = rng.uniform(12, 24)
    while y < canvas.height - 12:
        x = rng.uniform(1, 16)
        while True:
            text = rng.choice(
                [rng.choice(WORDS), rng.choice(WORDS), str(rng.randint(0, 999)), rng.choice("ABCD")]
            )
            if x + canvas.text_width(text, size) > canvas.width - 1:
                break
            canvas.text(x, y, text, size)
            x += canvas.text_width(text, size) + rng.uniform(5, 16)
        y += rng.uniform(1.2, 1.5) * size
    return []


def _corners(canvas: Canvas, rng: random.Random, size: float) -> list[Exchange]:
    """Four words, one near each corner."""
    exchanges = []
    words = iter(rng.sample(WORDS, 4))
    reach_x = 0.04 * canvas.width + 4
    for vertical, middle in (("top", 0.0), ("bottom", canvas.height)):
        for horizontal in ("left", "right"):
            word = next(words)
            inset_y = rng.uniform(16, max(18.0, 0.2 * canvas.height))
            inset_x = rng.uniform(4, reach_x)
            x = inset_x if horizontal == "left" else canvas.width - canvas.text_width(word, size) - inset_x
            canvas.text(x, middle + inset_y if vertical == "top" else middle - inset_y, word, size)
            exchanges.append(Exchange(f"Which word stands {vertical} {horizontal}?", word))
    return exchanges


def _receipt(canvas: Canvas, rng: random.Random, size: float) -> list[Exchange]:
    """Lettered items with prices, one a line, and their total under a rule."""
    pitch = 1.2 * size
    lines = int((canvas.height - 8) // pitch)
    items = "ABC"[: rng.randint(2, min(3, lines - 1))]
    prices = [rng.randint(1, 99) for _ in items]
    first = max(canvas.text_width(w, size) for w in (*items, "total")) + rng.uniform(6, 10)
    left = rng.uniform(5, canvas.width - first - 1.9 * size)
    column = left + first
    y = rng.uniform(16, canvas.height - pitch * len(items) - 15)
    exchanges = []
    for item, price in zip(items, prices, strict=True):
        canvas.text(left, y, item, size)
        canvas.text(column, y, str(price), size)
        exchanges.append(Exchange(f"How much is {item}?", str(price)))
        y += pitch
    canvas.line(left, y - pitch / 2, column + 40, y - pitch / 2)
    canvas.text(left, y, "total", size)
    canvas.text(column, y, str(sum(prices)), size)
    total = Exchange("What is the total?", str(sum(prices)))
    return [total, *exchanges]


def _table(canvas: Canvas, rng: random.Random, size: float) -> list[Exchange]:
    """A ruled table of numbers with lettered columns and numbered rows."""
    num_columns, names = 2, "12"
    first = max(canvas.text_width(n, size) for n in names) + 10
    pitch = rng.uniform(1.6 * size, min(2.4 * size, (canvas.width - first - 8) / num_columns))
    left = rng.uniform(4, canvas.width - first - pitch * num_columns)
    height = rng.uniform(1.25 * size, 44)
    top = rng.uniform(16, canvas.height - height * len(names) - 14)
    exchanges = []
    for column in range(num_columns):
        canvas.text(left + first + pitch * column + 8, top, "AB"[column], size)
    for row, name in enumerate(names):
        y = top + height * (row + 1)
        canvas.line(left, y - height / 2, left + first + pitch * num_columns, y - height / 2)
        canvas.text(left, y, name, size)
        for column in range(num_columns):
            value = str(rng.randint(10, 99))
            canvas.text(left + first + pitch * column, y, value, size)
            exchanges.append(Exchange(f"What is in row {name} of column {'AB'[column]}?", value))
    return exchanges


def _chart(canvas: Canvas, rng: random.Random, size: float) -> list[Exchange]:
    """Bars with their values above and letters below."""
    count = rng.randint(2, 4 if canvas.width > 200 else 2)
    values = _apart(rng, count)
    base, pitch = canvas.height - 32, (canvas.width - 16) / count
    tallest = base - 36
    canvas.line(6, base, canvas.width - 6, base)
    exchanges = []
    for bar, value in enumerate(values):
        x = 8 + pitch * (bar + 0.5)
        height = max(4.0, tallest * value / 100)
        canvas.box(x - 14, base - height, x + 14, base - 1, _bar_color(rng))
        for text, y in ((str(value), base - height - 16), ("ABCD"[bar], base + 16)):
            canvas.text(x - canvas.text_width(text, size) / 2, y, text, size)
        exchanges.append(Exchange(f"What is the value of {'ABCD'[bar]}?", str(value)))
    letters = "ABCD"[:count]
    exchanges.append(Exchange("Which bar is the tallest?", letters[values.index(max(values))]))
    return exchanges


def _apart(rng: random.Random, count: int) -> list[int]:
    """Distinct two-digit values whose largest stands out to the eye."""
    while True:
        values = rng.sample(range(10, 100), count)
        largest, second = sorted(values, reverse=True)[:2]
        if largest - second >= 8:
            return values


def _bar_color(rng: random.Random) -> Color:
    strong = rng.randrange(3)
    return tuple(rng.randint(150, 230) if c == strong else rng.randint(40, 140) for c in range(3))  # type: ignore[return-value]


_Painter = Callable[[Canvas, random.Random, float], list[Exchange]]
_PAINTERS: dict[str, tuple[tuple[Grid, ...], _Painter]] = {
    "lines": (((1, 1),), _lines),
    "sign": (((1, 1),), _sign),
    "corners": (((2, 1), (2, 2), (3, 2)), _corners),
    "receipt": (((2, 2),), _receipt),
    "table": (((2, 2),), _table),
    "chart": (((2, 1), (2, 2), (3, 2)), _chart),
}
# The kinds that have questions.
KINDS: tuple[str, ...] = ("sign", "corners", "receipt", "table", "chart")
