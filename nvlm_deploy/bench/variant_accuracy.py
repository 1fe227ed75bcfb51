"""What trained checkpoints of the variants read right, in PyTorch and as engines: exact match."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.parameters import parameter_shapes
from nvlm_deploy.eval.answerers import open_answerer
from nvlm_deploy.eval.exact_match import exact_match
from nvlm_deploy.pipeline.engine import build_engine_bundle
from nvlm_deploy.pipeline.plan import BuildRequest, plan_engine
from nvlm_deploy.progress import ProgressCallback
from nvlm_deploy.synthetic.documents import samples

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainedFigures:
    """One checkpoint: parameters, and exact match (0 to 1) by who answers: `pytorch fp32`, then recipes."""

    variant: str
    name: str
    parameters: int
    exact_match: dict[str, float]


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """The checkpoints on the same `questions` held-out questions."""

    questions: int
    checkpoints: tuple[TrainedFigures, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def table(self) -> tuple[str, list[Row]]:
        """A table to be read by people, and a sentence before it."""
        answerers = list(self.checkpoints[0].exact_match)
        sentence = f"Exact match of trained checkpoints on the same {self.questions} held-out questions."
        table: list[Row] = [("variant", "checkpoint", "parameters", *answerers)]
        for each in self.checkpoints:
            shares = (f"{100 * each.exact_match[name]:.1f} %" for name in answerers)
            table.append((each.variant, each.name, f"{each.parameters:,}", *shares))
        return sentence, table


def measure_accuracy(
    checkpoints: Sequence[Path],
    recipes: Sequence[str],
    target: str,
    questions: int,
    work: Path,
    progress: ProgressCallback,
) -> AccuracyReport:
    """Ask every checkpoint in PyTorch and its engines, built below `work`.

    Raises:
        NvlmError: a checkpoint is incomplete, or an engine of it cannot be built.
    """
    measured: list[TrainedFigures] = []
    for checkpoint in checkpoints:
        config = NvlmConfig.from_directory(checkpoint)
        answerers = {"pytorch fp32": checkpoint}
        for recipe in recipes:
            bundle = work / f"{len(measured)}-{recipe}"
            build_engine_bundle(plan_engine(BuildRequest(checkpoint, recipe, target, bundle)))
            answerers[recipe] = bundle
        measured.append(
            TrainedFigures(
                config.variant,
                checkpoint.resolve().name,
                sum(math.prod(shape) for shape in parameter_shapes(config).values()),
                _ask(answerers, questions, config.tile_size),
            )
        )
        progress("ask", len(measured), len(checkpoints))
    return AccuracyReport(questions, tuple(measured))


def _ask(answerers: Mapping[str, Path], questions: int, tile_size: int) -> dict[str, float]:
    return {
        name: exact_match(samples("heldout", questions, tile_size=tile_size), open_answerer(source)).share
        for name, source in answerers.items()
    }
