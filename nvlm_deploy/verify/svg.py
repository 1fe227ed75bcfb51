"""Line plots by layer as inline SVG: axes, a limit, and points that tell their figures when pointed at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 900, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 40, 16, 48
# Two colors that are told apart without seeing red or green.
_COLORS = ("#1b6ca8", "#d1782a")
_GRID, _TEXT, _LIMIT, _BAD = "#e3e6ea", "#3d4550", "#8a94a0", "#b3261e"
# Distances from 1 below this are drawn as this.
_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot: a cosine by place (None: no point), and its least allowed value."""

    name: str
    values: Sequence[float | None]
    limit: float


def cosine_plot(title: str, places: Sequence[str], lines: Sequence[Line]) -> str:
    """A plot of 1 - cosine, logarithmic and lower is better, over the places of one part."""
    known = [_distance(v) for line in lines for v in line.values if v is not None]
    limits = [_distance(line.limit) for line in lines]
    low = math.floor(math.log10(min([*known, *limits])))
    high = max(math.ceil(math.log10(max([*known, *limits]))), low + 1)
    plot = _Plot(len(places), low, high)
    parts = [
        *plot.axes(places),
        *(text for i, line in enumerate(lines) for text in plot.line(i, line, places)),
    ]
    label = escape(title, quote=True)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12">{"".join(parts)}</svg>'
    )


class _Plot:
    """Coordinates of one plot: places to the right, powers of ten upwards."""

    def __init__(self, places: int, low: int, high: int) -> None:
        self._step = (_WIDTH - _LEFT - _RIGHT) / max(places - 1, 1)
        self._low, self._high = low, high

    def axes(self, places: Sequence[str]) -> list[str]:
        """Grid, powers of ten, and as many layer names as fit."""
        parts = []
        for power in range(self._low, self._high + 1):
            y = self._y(10.0**power)
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{_GRID}"/>')
            parts.append(_text(_LEFT - 8, y + 4, f"1e{power}", "end"))
        parts.append(_text(_LEFT, _HEIGHT - 6, "1 - cosine, by place; lower is better", "start"))
        every = max(1, math.ceil(len(places) / 12))
        for number, place in enumerate(places):
            if number % every == 0:
                parts.append(_text(self._x(number), _HEIGHT - _BOTTOM + 18, _short(place), "middle"))
        return parts

    def line(self, index: int, line: Line, places: Sequence[str]) -> list[str]:
        """Points, the line through them, the limit, and the name in the legend."""
        color = _COLORS[index % len(_COLORS)]
        points = [
            (self._x(i), self._y(_distance(v)), i, v) for i, v in enumerate(line.values) if v is not None
        ]
        path = "".join(f"{'L' if n else 'M'}{x:.1f} {y:.1f}" for n, (x, y, _, _) in enumerate(points))
        limit = self._y(_distance(line.limit))
        parts = [
            f'<path d="M{_LEFT} {limit:.1f}H{_WIDTH - _RIGHT}" stroke="{color}" stroke-dasharray="5 5"/>',
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2"/>',
        ]
        for x, y, number, value in points:
            fill = color if value >= line.limit else _BAD
            told = escape(f"{places[number]}: {line.name} {value:.6f}")
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}"><title>{told}</title></circle>'
            )
        return parts

    def _x(self, number: int) -> float:
        return _LEFT + self._step * number

    def _y(self, distance: float) -> float:
        share = (math.log10(distance) - self._low) / (self._high - self._low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def legend(names: Sequence[str]) -> str:
    """Names of the lines in their colors, as HTML."""
    keys = (
        f'<span style="color:{_COLORS[i % len(_COLORS)]}">&#9679;</span> {escape(name)}'
        for i, name in enumerate(names)
    )
    return " &nbsp; ".join(keys)


def _distance(cosine: float) -> float:
    return max(1 - cosine, _FLOOR)


def _short(place: str) -> str:
    """`vision.layers.3.mlp` as `3 mlp`."""
    parts = place.split(".")
    kind = {"attention": "attn", "embeddings": "in"}.get(parts[-1], parts[-1])
    return f"{parts[2]} {kind}" if len(parts) == 4 else kind


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_TEXT}">{escape(text)}</text>'
