"""How fast training is: this trainer and transformers' `Trainer` on one model and data, taking turns.

Each round gives every subject a few steps. The first step of a turn is not counted: it warms up. What counts
is the time from its end to the end of the last, reading of samples included. Medians are over rounds.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler

from nvlm_deploy.config.training import TrainingConfig
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.train.data.batch import TrainBatch, collate
from nvlm_deploy.train.data.order import Draw
from nvlm_deploy.train.data.sample import SkippedSample, TrainSample
from nvlm_deploy.train.data.stream import SampleDataset
from nvlm_deploy.train.flops import measured_peak
from nvlm_deploy.train.loop import Trainer
from nvlm_deploy.train.parallel import Processes
from nvlm_deploy.train.plan import TrainingPlan, plan_training

# Draws that the other trainer may need: more than any sensible number of rounds.
_DRAWS = 100_000


@dataclass(frozen=True, slots=True)
class Turn:
    """What one subject did in one round, first step left out."""

    seconds: float
    cpu_seconds: float
    samples: int
    tokens: int
    flops: float


@dataclass(slots=True)
class Subject:
    """One way to train, and its turns."""

    name: str
    turns: list[Turn] = field(default_factory=list)

    def row(self, peak: float) -> dict[str, Any]:
        """Medians over turns; `mfu` against `peak` FLOP/s. CPU time is this process's, of all threads."""
        return {
            "subject": self.name,
            "samples_per_second": statistics.median(turn.samples / turn.seconds for turn in self.turns),
            "tokens_per_second": statistics.median(turn.tokens / turn.seconds for turn in self.turns),
            "tokens_per_cpu_second": statistics.median(t.tokens / t.cpu_seconds for t in self.turns),
            "mfu": statistics.median(turn.flops / turn.seconds / peak for turn in self.turns),
        }


def bench_training(
    config: TrainingConfig,
    config_dir: Path,
    work: Path,
    rounds: int = 3,
    steps: int = 5,
    progress: ProgressCallback = no_progress,
) -> list[dict[str, Any]]:
    """Measure transformers' Trainer, this trainer, and this trainer with packing; rows in that order.

    Args:
        config: `data.packing` is set by the subject; `max_length` is what a packed sequence holds, and
            sequences of one sample are padded to the longest of their batch.
        work: a directory for what the trainers write.

    Raises:
        UnsuitableError: accelerate, which transformers' Trainer needs, is not installed.
    """
    processes = Processes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    peak = (config.peak_tflops or 0) * 1e12 or measured_peak(processes.device, config.bf16)
    plain = _trainer(config, config_dir, work / "plain", False, processes)
    packed = _trainer(config, config_dir, work / "packed", True, processes)
    theirs = _Transformers(_trainer(config, config_dir, work / "theirs", False, processes), work / "theirs")
    ours = (plain, packed)
    subjects = [Subject("transformers Trainer"), Subject("nvlm-train"), Subject("nvlm-train, packed")]
    for number in range(rounds):
        # Each comes first in turn: what slows the machine down may follow a rhythm.
        for place in range(len(subjects)):
            which = (number + place) % len(subjects)
            turn = theirs.turn(steps) if which == 0 else _turn(ours[which - 1], steps)
            subjects[which].turns.append(turn)
            progress("rounds", number * len(subjects) + place + 1, rounds * len(subjects))
    return [subject.row(peak) for subject in subjects]


def _trainer(
    config: TrainingConfig, config_dir: Path, output: Path, packing: bool, processes: Processes
) -> Trainer:
    data = config.data.model_copy(update={"packing": packing})
    changed = config.model_copy(
        update={"data": data, "output_dir": str(output), "max_steps": _DRAWS, "resume_from_checkpoint": True}
    )
    return Trainer(plan_training(changed, config_dir), processes)


def _turn(trainer: Trainer, steps: int) -> Turn:
    trainer.train_step()
    trainer.interval, cpu = trainer.new_interval(), time.process_time()
    for _ in range(steps):
        trainer.train_step()
    float(trainer.grad_norm)
    done = trainer.interval
    cpu_seconds = time.process_time() - cpu
    return Turn(time.perf_counter() - done.began, cpu_seconds, done.samples, done.tokens, done.flops)


class _Transformers:
    """transformers' own loop over the very model, samples and micro-batches of a Trainer of ours."""

    def __init__(self, trainer: Trainer, output: Path) -> None:
        try:
            import accelerate  # noqa: F401
        except ImportError:
            raise UnsuitableError(
                "transformers' Trainer needs the package accelerate, which is not installed",
                hint="pip install 'nvlm-deploy[train]'",
            ) from None
        self._trainer, self._output = trainer, output
        self._model = _WithLoss(trainer.objective)
        self._order = iter(trainer.plan.order())
        self._draws: list[Draw] = []

    def turn(self, steps: int) -> Turn:
        config, plan = self._trainer.config, self._trainer.plan
        batch = config.samples_per_device
        # One step's samples more than are trained on: it reads a step ahead, also while the clock runs.
        self._draws += islice(self._order, (steps + 2) * batch - len(self._draws))
        draws, self._draws = self._draws, self._draws[(steps + 1) * batch :]
        clock = _clock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = _sequential_trainer()(
                model=self._model,
                args=_arguments(config, self._output, steps + 1),
                train_dataset=_Drawn(plan.dataset(), draws),
                data_collator=_Collator(plan),
                callbacks=[clock],
            )
            trainer.remove_callback(_printer())
            trainer.train()
        counted = self._read(draws[batch : (steps + 1) * batch])
        tokens = sum(len(sample) for sample in counted)
        flops = self._trainer.count_flops(counted)
        (began, cpu_began), (ended, cpu_ended) = clock.ends[0], clock.ends[-1]
        return Turn(ended - began, cpu_ended - cpu_began, len(counted), tokens, flops)

    def _read(self, draws: Sequence[Draw]) -> list[TrainSample]:
        """What the turn has trained on."""
        drawn = _Drawn(self._trainer.plan.dataset(), draws)
        return [drawn[place] for place in range(len(draws))]


class _WithLoss(nn.Module):
    """The objective with the mean loss of a micro-batch, in the form that transformers' Trainer asks for."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        sums = self.objective(batch)
        return {"loss": sums.total / sums.tokens_S.sum()}


@dataclass(frozen=True, slots=True)
class _Drawn(Dataset[TrainSample]):
    """Samples by place in a list of draws; a bad one is replaced by the one before it."""

    samples: SampleDataset
    draws: Sequence[Draw]

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, place: int) -> TrainSample:
        sample = self.samples[self.draws[place]]
        if isinstance(sample, SkippedSample):
            return self[place - 1]
        return sample


@dataclass(frozen=True, slots=True)
class _Collator:
    plan: TrainingPlan

    def __call__(self, samples: list[TrainSample]) -> dict[str, TrainBatch]:
        return {"batch": collate([[sample] for sample in samples], self.plan.shape)}


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Notes when steps end."""

        def __init__(self) -> None:
            self.ends: list[tuple[float, float]] = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.ends.append((time.perf_counter(), time.process_time()))

    return Clock()


def _printer() -> Any:
    from transformers import PrinterCallback

    return PrinterCallback


def _sequential_trainer() -> Any:
    from transformers import Trainer as TransformersTrainer

    class Sequential(TransformersTrainer):
        """Takes samples in their order, which is shuffled already."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            samples: Any = train_dataset or self.train_dataset
            return SequentialSampler(samples)

    return Sequential


def _arguments(config: TrainingConfig, output: Path, steps: int) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        optim=config.optim,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        dataloader_num_workers=config.dataloader_num_workers,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
