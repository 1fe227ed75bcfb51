"""Random Unicode text of many kinds."""

from __future__ import annotations

import random

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>", "<|vision_start|>"]
ADDED = ["<tool_call>", "</tool_call>", "<|fim_pad|>"]
PIECES = [*SPECIAL, *ADDED, "<|im_", "end|>", "<image>", "<Image><tile_1>", "</Image>", "<", "|", ">"]
WORDS = ["the", "It's", "THEY'RE", "we'Ll", "don't", "x'ſ", "'s", "Straße", "naïve", "2024", "3.14", "café"]
SPACES = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\u0085",
    "\u000b",
    "\n\n ",
    " \n ",
]
# First and last code point: scripts, marks, Hangul with its parts, digits of all kinds, every plane.
RANGES = [
    (0x20, 0x7E),
    (0xA0, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x52F),
    (0x590, 0x6FF),
    (0x900, 0xDFF),
    (0x1100, 0x11FF),
    (0x1E00, 0x1FFF),
    (0x2000, 0x2BFF),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xF900, 0xFFFF),
    (0x10000, 0x1FFFF),
    (0x20000, 0x10FFFF),
    (0x0, 0x10FFFF),
]


def _character(generator: random.Random) -> str:
    while True:
        point = generator.randint(*generator.choice(RANGES))
        if not 0xD800 <= point < 0xE000:
            return chr(point)


def _stretch(generator: random.Random) -> str:
    kind = generator.randrange(8)
    if kind == 0:
        return generator.choice(PIECES)
    if kind == 1:
        return "".join(generator.choices(SPACES, k=generator.randint(1, 4)))
    if kind == 2:
        return generator.choice(WORDS) + generator.choice(["", " "])
    if kind == 3:  # a letter under a heap of marks
        marks = [chr(generator.choice([generator.randint(0x300, 0x36F), 0x5B0, 0x94D, 0x3099, 0x1D165]))]
        return generator.choice("aeou가か") + "".join(marks * generator.randint(1, 3))
    if kind == 4:
        return _character(generator) * generator.randint(1, 40)
    first, last = generator.choice(RANGES[:-2])
    stretch = [chr(generator.randint(first, last)) for _ in range(generator.randint(1, 8))]
    return "".join(c for c in stretch if not 0xD800 <= ord(c) < 0xE000)


def random_text(generator: random.Random) -> str:
    """Up to a dozen stretches of different kinds."""
    return "".join(_stretch(generator) for _ in range(generator.randint(0, 12)))
