"""Show the calibration set to a model step by step, with one step in memory and hidden states on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from nvlm_deploy.calibration import CalibrationSamples, TokenClass
from nvlm_deploy.config.calibration import ClassWeights
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.quantization.groups import LinearGroup
from nvlm_deploy.quantization.observe import Observed, Observer, Shown, choose_rows
from nvlm_deploy.quantization.spool import Hidden, Spool
from nvlm_deploy.quantization.steps import Step, model_steps
from nvlm_deploy.quantization.streamed_model import StreamedModel


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How much is looked at.

    rows: inputs per linear that searches see, at most; statistics are over all. seed: which rows.
    histograms: count magnitudes, too, for `Observed.beyond_C`.
    """

    class_weights: ClassWeights = field(default_factory=ClassWeights)
    rows: int = 2048
    seed: int = 0
    histograms: bool = False


@dataclass(frozen=True, slots=True)
class _GroupRows:
    """Token classes of what one group sees, and the rows that are kept, by sample."""

    classes: Sequence[torch.Tensor]
    kept: Sequence[torch.Tensor]

    def shown(self, sample: int, device: torch.device) -> Shown:
        return Shown(self.classes[sample].to(device), self.kept[sample].to(device))


class CalibrationStream:
    """Runs steps in order. Steps up to a finished one can be skipped if their outputs are still spooled."""

    def __init__(
        self,
        model: StreamedModel,
        samples: CalibrationSamples | None,
        spool_directory: Path,
        settings: StreamSettings,
        progress: ProgressCallback = no_progress,
    ) -> None:
        """Without samples, nothing can be observed; the steps are there all the same."""
        self.model, self.samples, self.settings = model, samples or (), settings
        self.steps = model_steps(model)
        self._spool, self._progress = Spool(spool_directory), progress
        # Tiles are large and slow to make, and all steps but the first do without them.
        self.without_tiles = [replace(sample, tiles=sample.tiles[:0]) for sample in self.samples]
        self._kept: dict[tuple[bytes, ...], list[torch.Tensor]] = {}

    def observe(self, index: int) -> dict[str, Observed]:
        """Run one step over all samples; return what its groups saw, by their first linear.

        The inputs of the step stay on disk until `finish`, so that it can be repeated.
        """
        step = self.steps[index]
        observer = Observer(self.model.model, step.groups, histograms=self.settings.histograms)
        rows = {group.linears[0]: self._rows(step, group) for group in step.groups}
        with self.model.loaded(step.computes_with), observer.watching(), torch.no_grad():
            for number, sample in enumerate(self.samples if index == 0 else self.without_tiles):
                hidden = self._read(index, number)
                observer.show({first: each.shown(number, self.model.device) for first, each in rows.items()})
                result = step.run(self.model, sample, hidden)
                if result is not None:
                    self._spool.write(index + 1, number, result)
                done = index * len(self.samples) + number + 1
                self._progress("show samples", done, len(self.steps) * len(self.samples))
        return observer.seen

    def finish(self, index: int) -> None:
        """Forget a step's inputs; its outputs are those of the next."""
        self._spool.forget(index)

    def count_rows(self, index: int, group: LinearGroup) -> int:
        """How many inputs all samples together are for a group of a step."""
        return sum(len(self.steps[index].classes(sample, group)) for sample in self.without_tiles)

    def _read(self, index: int, number: int) -> Hidden | None:
        if not self._spool.has(index, number):
            return None
        return self._spool.read(index, number, tiles=self.steps[index].attends).on(self.model.device)

    def _rows(self, step: Step, group: LinearGroup) -> _GroupRows:
        """Which rows searches see: the same ones in all groups whose rows mean the same."""
        classes = [step.classes(sample, group) for sample in self.without_tiles]
        key = tuple(rows.numpy().tobytes() for rows in classes)
        if key not in self._kept:
            weights = {kind: getattr(self.settings.class_weights, kind.name.lower()) for kind in TokenClass}
            arrays = [rows.numpy() for rows in classes]
            chosen = choose_rows(arrays, weights, self.settings.rows, self.settings.seed)
            self._kept[key] = [torch.from_numpy(rows) for rows in chosen]
        return _GroupRows(classes, self._kept[key])
