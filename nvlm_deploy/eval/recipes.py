"""What recipes cost and give: exact match, KL divergence, top-1, bytes and time, on one checkpoint."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from nvlm_deploy.backends import SessionOptions
from nvlm_deploy.calibration.sample import CalibrationSample
from nvlm_deploy.eval.agreement import Agreement, agreement
from nvlm_deploy.eval.answerers import engine_answerer, model_answerer
from nvlm_deploy.eval.exact_match import exact_match
from nvlm_deploy.eval.forced import LogitsFunction, engine_logits, image_prompt, model_logits, text_prompt
from nvlm_deploy.models import load_model
from nvlm_deploy.pipeline.engine import build_engine_bundle
from nvlm_deploy.pipeline.plan import BuildRequest, plan_engine
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from nvlm_deploy.runtime import Engine
from nvlm_deploy.runtime.bundle import Bundle
from nvlm_deploy.synthetic.documents import document, samples

REFERENCE = "pytorch fp32"


@dataclass(frozen=True, slots=True)
class Trial:
    """One engine that is measured; `calibration` and `seed` are None for recipes without calibration."""

    recipe: str
    calibration: str | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one trial.

    exact_match: 0 to 1. image and text: agreement with the reference on the tokens of right answers, for
    pages that are shown and for pages whose text is given. nbytes: of the bundle's weights.
    ms: median time of an answer.
    """

    trial: Trial
    exact_match: float
    by_kind: dict[str, float]
    image: Agreement
    text: Agreement
    nbytes: int
    ms: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **asdict(self.trial),
            "exact_match": self.exact_match,
            "by_kind": self.by_kind,
            "image": {"kl": self.image.kl, "top1": self.image.top1},
            "text": {"kl": self.text.kl, "top1": self.text.top1},
            "bytes": self.nbytes,
            "ms": self.ms,
        }


class RecipeComparison:
    """Builds engines of one checkpoint and holds them against the checkpoint itself in FP32."""

    def __init__(self, checkpoint: Path, target: str, questions: int, prompts: int) -> None:
        """`questions` are asked for exact match; the first `prompts` of them give the logits."""
        self.checkpoint, self.target = checkpoint, target
        model = load_model(checkpoint)
        self._tokenizer = Tokenizer.from_directory(checkpoint)
        tile_size = model.config.tile_size
        self._questions = list(samples("heldout", questions, tile_size=tile_size))
        builder = PromptBuilder(self._tokenizer, model.config)
        pages = [document("heldout", index, tile_size) for index in range(prompts)]
        asked = [random.Random(f"forced-{i}").choice(page.exchanges) for i, page in enumerate(pages)]
        self._image = [image_prompt(*pair, builder) for pair in zip(pages, asked, strict=True)]
        self._text = [text_prompt(*pair, builder) for pair in zip(pages, asked, strict=True)]
        logits = model_logits(model)
        self._reference = {id(sample): logits(sample) for sample in (*self._image, *self._text)}
        self._model = model

    def reference(self) -> Measured:
        """Measure the checkpoint itself, in PyTorch and FP32."""
        answer = model_answerer(self._model, self._tokenizer)
        nbytes = sum(p.numel() * p.element_size() for p in self._model.parameters())
        return self._measure(Trial(REFERENCE), answer, model_logits(self._model), nbytes)

    def measure(self, trial: Trial, bundle: Path) -> Measured:
        """Build the engine of a trial at `bundle`, measure it and remove it."""
        self._build(trial, bundle)
        nbytes = sum(path.stat().st_size for path in bundle.rglob("*.onnx*"))
        logits = engine_logits(Bundle.open(bundle), SessionOptions())
        measured = self._measure(trial, engine_answerer(Engine.open(bundle)), logits, nbytes)
        shutil.rmtree(bundle)
        return measured

    def _build(self, trial: Trial, bundle: Path) -> None:
        request = BuildRequest(self.checkpoint, trial.recipe, self.target, bundle)
        if trial.calibration is not None:
            seed = (f"calibration.seed={trial.seed}",)
            request = replace(request, calibration=trial.calibration, overrides=seed)
        build_engine_bundle(plan_engine(request))

    def _measure(self, trial: Trial, answer: Any, logits: LogitsFunction, nbytes: int) -> Measured:
        seconds: list[float] = []

        def timed(sample: Any) -> str:
            began = time.perf_counter()
            text: str = answer(sample)
            seconds.append(time.perf_counter() - began)
            return text

        report = exact_match(self._questions, timed)
        by_kind = {kind: report.right[kind] / report.asked[kind] for kind in sorted(report.asked)}
        return Measured(
            trial,
            report.share,
            by_kind,
            self._agreement(self._image, logits),
            self._agreement(self._text, logits),
            nbytes,
            1000 * float(np.median(seconds)),
        )

    def _agreement(self, prompts: Iterable[CalibrationSample], logits: LogitsFunction) -> Agreement:
        total = Agreement()
        for sample in prompts:
            total += agreement(self._reference[id(sample)], logits(sample))
        return total


@dataclass(frozen=True, slots=True)
class Row:
    """The mean of one recipe's trials with one calibration set; `worst` is the lowest exact match of them."""

    recipe: str
    calibration: str | None
    trials: int
    exact_match: float
    worst: float
    image_kl: float
    text_kl: float
    top1: float
    nbytes: int
    ms: float


def summarize(trials: Sequence[dict[str, Any]]) -> list[Row]:
    """Average trials, as `Measured.to_dict` gives them, over seeds; rows in the order of the trials."""
    grouped: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for trial in trials:
        grouped.setdefault((trial["recipe"], trial["calibration"]), []).append(trial)
    rows = []
    for (recipe, calibration), group in grouped.items():
        rows.append(
            Row(
                Path(recipe).stem,
                calibration,
                len(group),
                fmean(t["exact_match"] for t in group),
                min(t["exact_match"] for t in group),
                fmean(t["image"]["kl"] for t in group),
                fmean(t["text"]["kl"] for t in group),
                fmean(t["image"]["top1"] for t in group),
                max(t["bytes"] for t in group),
                fmean(t["ms"] for t in group),
            )
        )
    return rows


def pareto(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other one beats in both bytes and divergence: those worth choosing from."""
    return [
        row
        for row in rows
        if not any(
            (other.nbytes, other.image_kl) != (row.nbytes, row.image_kl)
            and other.nbytes <= row.nbytes
            and other.image_kl <= row.image_kl
            for other in rows
        )
    ]
