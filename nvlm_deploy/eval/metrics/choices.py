"""Which option an answer in words means."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from nvlm_deploy.errors import NvlmError

_FEW_WORDS = 5


def lettered(options: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Options by letter: a list gets A, B, C, ..."""
    if isinstance(options, Mapping):
        return dict(options)
    return dict(zip(string.ascii_uppercase, options, strict=False))


def find_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer names last, or None.

    Tried in turn: letters with a bracket, `(B)` or `B)`; letters between blanks; in an answer of more than
    five words, the options' own texts. Source: `parse_multi_choice_response` of MMMU-Benchmark/MMMU
    eval/eval_utils.py, with the bare bracket of Megatron-LM's mmmu_utils.py, which here must not end a word.
    """
    text = answer.strip()
    for mark in (",", ".", "!", "?", ";", ":", "'"):
        text = text.strip(mark)
    text = f" {text} "
    bracketed = {letter: _last(rf"(?<!\w){re.escape(letter)}\)", text) for letter in options}
    spaced = {letter: text.rfind(f" {letter} ") for letter in options}
    for places in (bracketed, spaced):
        if max(places.values()) >= 0:
            return _latest(places)
    if len(text.split()) <= _FEW_WORDS:
        return None
    contents = {key: text.lower().rfind(option.lower()) if option else -1 for key, option in options.items()}
    return _latest(contents) if max(contents.values()) >= 0 else None


def right_letters(references: Sequence[str], options: Mapping[str, str]) -> set[str]:
    """The letters of the right answers, which may be given as letters or as the options' texts.

    Raises:
        NvlmError: a reference is neither.
    """
    by_text = {option: letter for letter, option in reversed(list(options.items()))}
    letters = set()
    for i, reference in enumerate(references):
        letter = reference if reference in options else by_text.get(reference)
        if letter is None:
            raise NvlmError(f"references.{i} is {reference!r}, which is none of the options")
        letters.add(letter)
    return letters


def options_of(extra: Mapping[str, Any], *names: str) -> dict[str, str]:
    """The options of a line, under the first of `names` that it has; empty if it has none."""
    return next((lettered(extra[name]) for name in names if extra.get(name)), {})


def _last(pattern: str, text: str) -> int:
    return max((match.start() for match in re.finditer(pattern, text)), default=-1)


def _latest(places: Mapping[str, int]) -> str:
    return max(places, key=lambda letter: places[letter])
