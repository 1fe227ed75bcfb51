"""Probes: a few questions with what the reference makes of them, to hold an engine against on its device.

A kit has no checkpoint in full precision beside it, so the reference's figures travel with it. A probe is a
question with its right answer, and an engine is asked for the next token at every position of the answer:
one pass of the reference gives them all, and no error of the engine carries over to the next position.

Shapes: S tokens, P positions, V visual tokens, D hidden size.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nvlm_deploy.config.strict_json import from_json, to_json
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.verify.compare import log_softmax
from nvlm_deploy.verify.prompts import VerifyPrompt
from nvlm_deploy.verify.states import Rows

PROBES_NAME = "probes.json"
_TOP = 16
_TOKEN_DTYPE = np.float16


@dataclass(frozen=True, slots=True)
class ProbeToken:
    """What the reference says at one position: its most likely tokens, best first."""

    position: int
    top: tuple[Candidate, ...]

    def log_prob(self, token: int) -> float | None:
        """Log-probability of a token; None if it is none of the most likely ones."""
        return next((each.log_prob for each in self.top if each.id == token), None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token and its log-probability."""

    id: int
    log_prob: float


@dataclass(frozen=True, slots=True)
class Probe:
    """One question.

    image: file name beside `probes.json`; None for a question about text. tile_crc32: of every tile.
    input_ids: of the question and all tokens of the answer but the last. prompt_length: of the question.
    visual_tokens: file with the reference's visual tokens of the tiles in `visual_tiles`, float16 [T, N, D].
    """

    label: str
    question: str
    image: str | None
    tile_crc32: tuple[int, ...]
    input_ids: tuple[int, ...]
    prompt_length: int
    visual_tokens: str | None
    visual_tiles: tuple[int, ...]
    tokens: tuple[ProbeToken, ...]


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """All probes of a kit. reference: which model their figures are of, in words."""

    reference: str
    probes: tuple[Probe, ...]

    @classmethod
    def read(cls, directory: Path) -> ProbeSet:
        """Read `probes.json`.

        Raises:
            NvlmError: it is missing or not in order.
        """
        path = directory / PROBES_NAME
        try:
            raw: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise NvlmError(f"{path} cannot be read: {error}") from None
        return from_json(cls, raw, str(path))


def write_probes(
    directory: Path,
    reference: str,
    prompts: Sequence[VerifyPrompt],
    logits: Sequence[Rows],
    visual: dict[int, Rows],
    tokens_per_tile: int,
) -> ProbeSet:
    """Write probes, their images and visual tokens into `directory`.

    Args:
        logits: float32 [P, vocabulary] of every prompt, whose last rows predict the answer.
        visual: float32 [V, D] of prompts with an image, by their number.
    """
    directory.mkdir(parents=True, exist_ok=True)
    probes = tuple(
        _write_probe(directory, number, prompt, logits[number], visual.get(number), tokens_per_tile)
        for number, prompt in enumerate(prompts)
    )
    made = ProbeSet(reference, probes)
    (directory / PROBES_NAME).write_text(json.dumps(to_json(made), indent=1) + "\n", encoding="utf-8")
    return made


def _write_probe(
    directory: Path,
    number: int,
    prompt: VerifyPrompt,
    logits_PV: Rows,
    visual_VD: Rows | None,
    tokens_per_tile: int,
) -> Probe:
    image, stored = None, None
    tiles: tuple[int, ...] = ()
    if prompt.image is not None:
        image = f"{number:02}.png"
        prompt.image.save(directory / image)
    if visual_VD is not None:
        tiles = tuple(sorted({0, len(prompt.sequence.tiles) - 1}))
        stored = f"{number:02}.visual_tokens.npy"
        by_tile_TND = visual_VD.reshape(-1, tokens_per_tile, visual_VD.shape[1])
        np.save(directory / stored, by_tile_TND[list(tiles)].astype(_TOKEN_DTYPE))
    count = len(prompt.answer_ids)
    first = len(prompt.sequence.input_ids) - count
    return Probe(
        label=prompt.label,
        question=prompt.exchange.question,
        image=image,
        tile_crc32=tuple(zlib.crc32(np.ascontiguousarray(tile).data) for tile in prompt.sequence.tiles),
        input_ids=tuple(int(i) for i in prompt.sequence.input_ids),
        prompt_length=prompt.sequence.prompt_length,
        visual_tokens=stored,
        visual_tiles=tiles,
        tokens=tuple(_token(first + i, row_V) for i, row_V in enumerate(logits_PV[-count:])),
    )


def _token(position: int, logits_V: Rows) -> ProbeToken:
    log_p_V = log_softmax(logits_V[None])[0]
    order = np.argsort(-log_p_V, kind="stable")[:_TOP]
    return ProbeToken(position, tuple(Candidate(int(i), round(float(log_p_V[i]), 5)) for i in order))


def read_visual_tokens(directory: Path, probe: Probe) -> npt.NDArray[np.float32] | None:
    """The reference's visual tokens of a probe, float32 [T, N, D], of its `visual_tiles`."""
    if probe.visual_tokens is None:
        return None
    return np.asarray(np.load(directory / probe.visual_tokens), np.float32)


def read_image(directory: Path, probe: Probe) -> Image.Image | None:
    """The image of a probe."""
    if probe.image is None:
        return None
    with Image.open(directory / probe.image) as image:
        image.load()
        return image.copy()
