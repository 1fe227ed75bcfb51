"""Two measures of what is lost when linears are replaced: by the whole model's logits, or layer by layer.

A sweep goes through the model's steps in order: `enter` a step, `score` replacements in it, `leave` it.

Shapes: S tokens, A positions of an answer, D decoder width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nvlm_deploy.calibration import CalibrationSample
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.sensitivity import Measure as MeasureName
from nvlm_deploy.eval.agreement import Agreement, agreement
from nvlm_deploy.quantization.spool import Hidden, Spool
from nvlm_deploy.quantization.steps import HeadStep, TokenEmbedding, model_steps
from nvlm_deploy.quantization.streamed_model import StreamedModel
from nvlm_deploy.sensitivity.prompts import Prompts, answer_positions
from nvlm_deploy.sensitivity.simulate import Linears, install, replaced


@dataclass(frozen=True, slots=True)
class Loss:
    """What a replacement costs, in the measure's unit; `top1` if logits were compared."""

    value: float
    top1: float | None = None


class Measure(ABC):
    """Runs prompts through the model's steps. Use inside `with measure.open()`."""

    name: MeasureName

    def __init__(self, weights: ModelWeights, prompts: Prompts, device: torch.device) -> None:
        self.model = StreamedModel(weights, device)
        self.steps = model_steps(self.model)
        self._samples = list(prompts.samples)

    @abstractmethod
    def open(self) -> AbstractContextManager[None]:
        """Hold what the measure needs."""

    @abstractmethod
    def enter(self, index: int) -> None:
        """Start with a step."""

    @abstractmethod
    def score(self, index: int, linears: Linears) -> Loss:
        """What is lost if `linears` of this step are replaced."""

    @abstractmethod
    def leave(self, index: int) -> None:
        """Be done with a step."""

    def _run(self, index: int, number: int, hidden: Hidden | None) -> Hidden | None:
        """What the next step sees of a prompt; of the last one, the logits of the answer [A, V]."""
        step, sample = self.steps[index], self._samples[number]
        if not isinstance(step, HeadStep):
            return step.run(self.model, sample, hidden)
        assert hidden is not None
        language, x_1SD = self.model.model.language, hidden.x
        last_AD = x_1SD[0, torch.from_numpy(answer_positions(sample)).to(x_1SD.device)]
        return Hidden(language.logits(language.norm(last_AD)))


class KlMeasure(Measure):
    """Mean KL divergence of the answers' logits from FP32's, in nats.

    Exact: the model is computed to its end for every replacement, from the step's input on, which is kept.
    Memory: the whole model in FP32, and two hidden states of every prompt.
    """

    name = "kl"

    def __init__(self, weights: ModelWeights, prompts: Prompts, device: torch.device) -> None:
        super().__init__(weights, prompts, device)
        self._inputs: list[Hidden | None] = []
        self._reference: list[np.ndarray] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        names = self.model.weights.names()
        with self.model.loaded(names), torch.inference_mode():
            self._inputs = [self._run(0, number, None) for number in range(len(self._samples))]
            # Pixels are large, and only the first step sees them.
            self._samples = [_without_tiles(sample) for sample in self._samples]
            self._reference = [self._logits(1, number) for number in range(len(self._samples))]
            yield

    def enter(self, index: int) -> None:
        pass

    def score(self, index: int, linears: Linears) -> Loss:
        with replaced(self.model.model, linears):
            return self._compare(index)

    def leave(self, index: int) -> None:
        if 0 < index < len(self.steps) - 1:
            self._inputs = [self._run(index, number, x) for number, x in enumerate(self._inputs)]

    def replace_for_good(self, linears: Linears) -> None:
        """Replace linears of any step; only `compare_all` is of use then."""
        install(self.model.model, linears)

    def compare_all(self) -> Agreement:
        """Compare the logits as they are now with those of the model as released."""
        return self._agreement(1)

    def _compare(self, index: int) -> Loss:
        found = self._agreement(index)
        return Loss(found.kl, found.top1)

    def _agreement(self, index: int) -> Agreement:
        total = Agreement()
        for number, reference in enumerate(self._reference):
            total += agreement(reference, self._logits(index, number))
        return total

    def _logits(self, index: int, number: int) -> np.ndarray:
        hidden = self._inputs[number]
        for step in range(index, len(self.steps)):
            hidden = self._run(step, number, hidden)
        assert hidden is not None
        return hidden.x.cpu().numpy()

    def _run(self, index: int, number: int, hidden: Hidden | None) -> Hidden | None:
        step = self.steps[index]
        if not isinstance(step, TokenEmbedding):
            return super()._run(index, number, hidden)
        # The whole table is in memory; from disk, row by row, is slow to repeat for every replacement.
        look_up = self.model.model.language.embed_tokens
        return step.embed(self.model, self._samples[number], hidden, look_up)


class LocalMeasure(Measure):
    """Squared error of a step's output relative to the output's square, over all prompts.

    Hidden states pass from step to step on disk. Memory: one step in FP32, one hidden state.
    """

    name = "relative-error"

    def __init__(
        self, weights: ModelWeights, prompts: Prompts, device: torch.device, spool_directory: Path
    ) -> None:
        super().__init__(weights, prompts, device)
        self._spool = Spool(spool_directory)

    def open(self) -> AbstractContextManager[None]:
        return nullcontext()

    def enter(self, index: int) -> None:
        for number, hidden in self._outputs(index):
            self._spool.write(index + 1, number, hidden)

    def score(self, index: int, linears: Linears) -> Loss:
        error = square = 0.0
        for number, hidden in self._outputs(index, linears):
            exact = self._spool.read(index + 1, number).x.to(hidden.x.device)
            error += float((hidden.x - exact).square().sum(dtype=torch.float64))
            square += float(exact.square().sum(dtype=torch.float64))
        return Loss(error / square if square else float(error > 0))

    def leave(self, index: int) -> None:
        self._spool.forget(index)

    def _outputs(self, index: int, linears: Linears | None = None) -> Iterator[tuple[int, Hidden]]:
        with (
            self.model.loaded(self.steps[index].computes_with),
            replaced(self.model.model, linears or {}),
            torch.inference_mode(),
        ):
            for number in range(len(self._samples)):
                hidden = self._run(index, number, self._read(index, number))
                if hidden is not None:
                    yield number, hidden

    def _read(self, index: int, number: int) -> Hidden | None:
        if not self._spool.has(index, number):
            return None
        return self._spool.read(index, number, tiles=self.steps[index].attends).on(self.model.device)


def _without_tiles(sample: CalibrationSample) -> CalibrationSample:
    return replace(sample, tiles=sample.tiles[:0])
