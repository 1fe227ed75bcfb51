"""Writes src/text/unicode_tables.inc: what the `tokenizers` library takes for letters, numbers, and NFC.

Its regular expressions and its normalizer follow different versions of Unicode, and the tables of a
system's libraries follow a third. So the classes and compositions are asked of the library itself, for
every code point; Python's own tables give the combining classes, which never change once assigned.

    python engines/runtime/tools/unicode_tables.py [OUTPUT]
"""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "text" / "unicode_tables.inc"

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xD7A4)
HANGUL_FOLLOWERS = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}
_YPOGEGRAMMENI = "\u0345"  # class 240, the highest: every other mark moves before it
_OVERLAY = "\u0334"  # class 1, the lowest: it moves before every other mark


def members(pattern: str) -> list[int]:
    """The code points that match `pattern`, a class of one character."""
    splitter = pre_tokenizers.Split(Regex(pattern), "isolated")
    # The separator is a control character, in none of the classes asked for.
    text = "\x00".join(map(chr, CODE_POINTS))
    return [ord(piece) for piece, _ in splitter.pre_tokenize_str(text) if len(piece) == 1 and piece != "\x00"]


def ranges(points: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted, closed ranges."""
    found: list[tuple[int, int]] = []
    for point in sorted(points):
        if found and found[-1][1] == point - 1:
            found[-1] = (found[-1][0], point)
        else:
            found.append((point, point))
    return found


@functools.cache
def combining_classes() -> list[tuple[int, int, int]]:
    """(first, last, class) of the marks that the library's normalizer puts in order."""
    nfd = normalizers.NFD()
    moving = set()
    for point in CODE_POINTS:
        mark = chr(point)
        if nfd.normalize_str(mark) != mark:
            continue
        before, after = "a" + _YPOGEGRAMMENI + mark, "a" + mark + _OVERLAY
        if nfd.normalize_str(before) != before or nfd.normalize_str(after) != after:
            moving.add(point)
    moving |= {ord(_YPOGEGRAMMENI), ord(_OVERLAY)}
    unknown = [hex(point) for point in moving if not unicodedata.combining(chr(point))]
    if unknown:
        raise SystemExit(f"this Python's Unicode is older than the library's: {unknown}")
    classes = sorted({unicodedata.combining(chr(point)) for point in moving})
    table = []
    for value in classes:
        same = [point for point in moving if unicodedata.combining(chr(point)) == value]
        table += [(first, last, value) for first, last in ranges(same)]
    return sorted(table)


@functools.cache
def decompositions() -> list[tuple[int, str]]:
    """(code point, its full canonical decomposition), Hangul syllables left out: they follow a rule."""
    nfd = normalizers.NFD()
    full = ((point, nfd.normalize_str(chr(point))) for point in CODE_POINTS if point not in HANGUL)
    return [(point, text) for point, text in full if text != chr(point)]


def compositions() -> list[tuple[int, int, int]]:
    """(first, second, composed) of the pairs that the library composes."""
    nfc = normalizers.NFC()
    pairs = []
    for point, _ in decompositions():
        parts = unicodedata.decomposition(chr(point)).split()
        if len(parts) == 2 and nfc.normalize_str("".join(chr(int(p, 16)) for p in parts)) == chr(point):
            pairs.append((int(parts[0], 16), int(parts[1], 16), point))
    return sorted(pairs)


def unstable(pairs: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """What NFC may change, or join with what stands before it. All other text is its own NFC."""
    nfc = normalizers.NFC()
    points = {point for point, text in decompositions() if nfc.normalize_str(chr(point)) != chr(point)}
    points |= {second for _, second, _ in pairs} | HANGUL_FOLLOWERS
    for first, last, _ in combining_classes():
        points |= set(range(first, last + 1))
    return ranges(points)


def _array(kind: str, name: str, rows: Sequence[str]) -> str:
    lines, line = [], "   "
    for row in rows:
        if len(line) + len(row) + 2 > 110:
            lines.append(line)
            line = "   "
        line += f" {row},"
    lines.append(line)
    return f"constexpr {kind} {name}[] = {{\n" + "\n".join(lines) + "\n};\n"


def render() -> str:
    """The text of the table file."""
    letters = [f"{{{a:#x}, {b:#x}}}" for a, b in ranges(members(r"\p{L}"))]
    numbers = [f"{{{a:#x}, {b:#x}}}" for a, b in ranges(members(r"\p{N}"))]
    marks = [f"{{{a:#x}, {b:#x}, {value}}}" for a, b, value in combining_classes()]
    decomposed, parts = [], []
    for point, text in decompositions():
        decomposed.append(f"{{{point:#x}, {len(parts)}, {len(text)}}}")
        parts += [f"{ord(char):#x}" for char in text]
    pairs = compositions()
    composed = [f"{{{a:#x}, {b:#x}, {c:#x}}}" for a, b, c in pairs]
    changing = [f"{{{a:#x}, {b:#x}}}" for a, b in unstable(pairs)]
    return "\n".join(
        [
            "// Written by tools/unicode_tables.py from the `tokenizers` library; not to be edited.\n",
            _array("Range", "letters", letters),
            _array("Range", "numbers", numbers),
            _array("MarkRange", "marks", marks),
            _array("Decomposition", "decompositions", decomposed),
            _array("char32_t", "decomposed_parts", parts),
            _array("Composition", "compositions", composed),
            _array("Range", "unstable", changing),
        ]
    )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    target.write_text(render(), encoding="utf-8")
