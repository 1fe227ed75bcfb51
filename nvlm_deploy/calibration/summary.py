"""What a calibration set was: the record that goes with what is quantized by it."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nvlm_deploy.calibration.sample import CalibrationSample
from nvlm_deploy.calibration.token_classes import UNSEEN, TokenClass
from nvlm_deploy.config.calibration import CalibrationSet

# Fewer samples make statistics that depend on the draw.
MIN_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class CalibrationSummary:
    """The samples of one set in numbers.

    Attributes:
        source: the set's source, as its YAML file says it.
        requested: samples that the set asks for.
        count: samples that there are.
        left_out: conversations that were drawn and whose prompt is longer than `max_tokens`.
        shortened: samples whose answer was cut to `max_tokens`.
        max_tokens: the set's limit, or the model's if that is lower.
        digest: SHA-256, in hexadecimal digits, over the digests of all samples in order: of the set as the
            model sees it, so it depends on the model's tokenizer and tile size.
        tokens: number of tokens by class: text, tag, visual, thumbnail; those of tiles in cross-attention
            are among them. cross_tiles: how many tiles are there.
        images: number of images; `tiles` of their tiles, thumbnails included.
        class_weights: how much a position of each class counts.
        warnings: sentences on what the set cannot calibrate.
    """

    name: str
    source: dict[str, Any]
    licence: str
    seed: int
    requested: int
    count: int
    left_out: int
    shortened: int
    max_tokens: int
    digest: str
    tokens: dict[str, int]
    images: int
    tiles: int
    class_weights: dict[str, float]
    warnings: tuple[str, ...]
    cross_tiles: int = 0

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        return {**dataclasses.asdict(self), "warnings": list(self.warnings)}


@dataclass(slots=True)
class Tally:
    """Counts samples while they go by."""

    count: int = 0
    answered: int = 0
    with_text: int = 0
    shortened: int = 0
    images: int = 0
    tiles: int = 0
    cross_tiles: int = 0
    _tokens: np.ndarray[Any, np.dtype[np.int64]] = field(
        default_factory=lambda: np.zeros(len(TokenClass), dtype=np.int64)
    )
    _digests: list[bytes] = field(default_factory=list)

    def add(self, sample: CalibrationSample) -> bytes:
        """Count one sample; return its digest."""
        self.count += 1
        self.answered += len(sample) > sample.prompt_length
        self.with_text += sample.has_text
        self.shortened += sample.cut_tokens > 0
        self.images += len(sample.tiles_per_image)
        self.tiles += len(sample.tiles)
        self.cross_tiles += 0 if sample.cross is None else len(sample.cross.tiles)
        entries = sample.entry_classes[sample.entry_classes != UNSEEN]
        classes = np.concatenate([sample.token_classes, entries])
        self._tokens += np.bincount(classes, minlength=len(TokenClass))
        self._digests.append(sample.digest())
        return self._digests[-1]

    def summarize(self, spec: CalibrationSet, left_out: int, max_tokens: int) -> CalibrationSummary:
        """Return the summary of what was counted."""
        tokens = {each.name.lower(): int(self._tokens[each]) for each in TokenClass}
        return CalibrationSummary(
            name=spec.name,
            source=spec.source.model_dump(mode="json"),
            licence=spec.licence,
            seed=spec.seed,
            requested=spec.count,
            count=self.count,
            left_out=left_out,
            shortened=self.shortened,
            max_tokens=max_tokens,
            digest=hashlib.sha256(b"".join(self._digests)).hexdigest(),
            tokens=tokens,
            images=self.images,
            tiles=self.tiles,
            class_weights=spec.class_weights.model_dump(),
            warnings=tuple(self._warnings(spec, tokens)),
            cross_tiles=self.cross_tiles,
        )

    def _warnings(self, spec: CalibrationSet, tokens: dict[str, int]) -> list[str]:
        warnings = []
        if not self.images:
            warnings.append(
                "the set has no image: the vision layers cannot be calibrated, and the language layers never "
                "see a visual token; use a set with images for what will be deployed"
            )
        elif empty := [name for name, count in tokens.items() if not count]:
            warnings.append(
                f"the set has no token of the class {' or '.join(empty)}; "
                "images of more than one tile have tokens of every class"
            )
        if not self.with_text:
            warnings.append(
                "the set has no text: all that the language layers see of it is the frame of the prompt; add "
                "the questions and answers of what will be deployed"
            )
        elif not self.answered:
            warnings.append(
                "no sample has an answer: what the model writes is not calibrated, only what it reads"
            )
        warnings += _weight_warnings(spec.class_weights.model_dump(), tokens)
        if self.count < MIN_SAMPLES:
            warnings.append(
                f"the set has few samples ({self.count}): below {MIN_SAMPLES}, the draw decides the scales"
            )
        if self.count < spec.count:
            warnings.append(f"the set asks for {spec.count:,} samples, and its source gives {self.count:,}")
        return warnings


def _weight_warnings(weights: dict[str, float], tokens: dict[str, int]) -> list[str]:
    """Searches see rows by the weights of their classes, and the tower's rows have two classes only."""
    warnings = []
    for part, classes in (("language", tuple(tokens)), ("vision", ("visual", "thumbnail"))):
        shown = [name for name in classes if tokens[name]]
        if shown and not any(weights[name] for name in shown):
            warnings.append(
                f"no token of the {part} layers has a weight: AWQ and GPTQ would see nothing there; give "
                f"class_weights above 0 to {' or '.join(shown)}"
            )
    return warnings
