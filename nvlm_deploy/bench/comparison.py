"""NVLM-D, X and H compared: engines of equal width, training throughput, what trained checkpoints read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.bench.variant_accuracy import AccuracyReport, measure_accuracy
from nvlm_deploy.bench.variant_report import Row, VariantReport
from nvlm_deploy.bench.variant_training import TrainingReport, TrainingWorkload, bench_training
from nvlm_deploy.bench.variants import VariantSettings, bench_variants, variant_configs
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.progress import ProgressCallback


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """What is compared. training: None leaves it out.

    trained: checkpoints that are asked `questions` held-out questions, themselves and as engines of
    `trained_recipes` for `target`.
    """

    engines: VariantSettings
    training: TrainingWorkload | None = None
    trained: tuple[Path, ...] = ()
    trained_recipes: tuple[str, ...] = ("int4-rtn",)
    questions: int = 500
    target: str = "cpu-x86"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The reports; None for what was left out."""

    engines: VariantReport
    training: TrainingReport | None
    accuracy: AccuracyReport | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the engines' report with `training` and `accuracy` beside its rows."""
        return {
            **self.engines.to_dict(),
            "training": self.training and self.training.to_dict(),
            "accuracy": self.accuracy and self.accuracy.to_dict(),
        }

    def tables(self) -> Iterator[tuple[str, list[Row]]]:
        """Tables to be read by people, each with a sentence before it."""
        yield from self.engines.tables()
        if self.training is not None:
            yield self.training.table()
        if self.accuracy is not None:
            yield self.accuracy.table()

    def markdown(self, command: str) -> str:
        """The comparison as a page; `command` is what made it."""
        engines = self.engines
        facts = ", ".join(f"{key} {value}" for key, value in engines.environment.items())
        parts = [
            "# NVLM-D, X and H at equal width",
            f"Engines of shape `{engines.shape}` with random weights, cross-attention every "
            f"{engines.interval} decoder layers, recipe `{engines.recipe}`; median of "
            f"{engines.workload.rounds} rounds, of the tower of {engines.workload.vision_rounds} ({facts}). "
            "Prompts have as many tokens as with the released tokenizer.",
            f"`{command}`",
        ]
        for sentence, table in self.tables():
            parts += [sentence, _markdown_table(table)]
        return "\n\n".join(parts) + "\n"


def compare_variants(settings: ComparisonSettings, directory: Path, progress: ProgressCallback) -> Comparison:
    """Measure all that is asked for; checkpoints and engines are made below `directory`.

    Raises:
        UsageError: an unknown shape or recipe, or more tiles than an image has.
        NvlmError: a trained checkpoint is incomplete.
    """
    training_configs: dict[str, NvlmConfig] = {}
    if settings.training is not None:
        raw_configs = variant_configs(settings.training.shape, settings.engines.interval)
        training_configs = {variant: NvlmConfig.from_dict(raw) for variant, raw in raw_configs.items()}
    # Before the hours of work: whether the checkpoints are there.
    for checkpoint in settings.trained:
        NvlmConfig.from_directory(checkpoint)
    accuracy = training = None
    if settings.trained:
        recipes, target = settings.trained_recipes, settings.target
        accuracy = measure_accuracy(
            settings.trained, recipes, target, settings.questions, directory, progress
        )
    engines = bench_variants(settings.engines, directory, progress)
    if settings.training is not None:
        threads = engines.environment["threads"]
        training = bench_training(training_configs, settings.training, threads, progress)
    return Comparison(engines, training, accuracy)


def _markdown_table(table: Sequence[Row]) -> str:
    head, *rows = ["| " + " | ".join(row) + " |" for row in table]
    rule = "|---|" + "---:|" * (len(table[0]) - 1)
    return "\n".join([head, rule, *rows])
