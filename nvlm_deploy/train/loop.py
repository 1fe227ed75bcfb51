"""The training loop.

A step is `gradient_accumulation_steps` micro-batches on every process. Their losses are summed and divided by
the number of tokens that count in the whole step, so that the gradient is that of one big batch.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from nvlm_deploy.config.training import TrainingConfig
from nvlm_deploy.errors import UsageError
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.train.build import build_objective, model_directory
from nvlm_deploy.train.data.batch import TrainBatch, collate
from nvlm_deploy.train.data.order import Draw
from nvlm_deploy.train.data.sample import SkippedSample, TrainSample
from nvlm_deploy.train.data.stream import SequenceStream
from nvlm_deploy.train.export import export_adapters, export_checkpoint
from nvlm_deploy.train.flops import FlopCounter, measured_peak
from nvlm_deploy.train.metrics import SKIPPED, MetricsLog, append_row, peak_memory
from nvlm_deploy.train.parallel import Processes, clip_gradients
from nvlm_deploy.train.plan import TrainingPlan
from nvlm_deploy.train.schedule import learning_rate
from nvlm_deploy.train.state import find_checkpoint, load_checkpoint, remove_remains, save_checkpoint

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a run ended. `output` is what was exported; None if it was asked to stop before its last step."""

    step: int
    output: Path | None


@dataclass(slots=True)
class Interval:
    """Sums of this process since the last row of metrics."""

    losses_S: Tensor
    tokens_S: Tensor
    samples: int = 0
    tokens: int = 0
    tiles: int = 0
    flops: float = 0.0
    began: float = field(default_factory=time.perf_counter)


class Trainer:
    """A run in one process: model, optimizer, data, and where they stand."""

    def __init__(self, plan: TrainingPlan, processes: Processes) -> None:
        """Read the weights, and what the last checkpoint has if there is one."""
        self.plan, self.processes, self.config = plan, processes, plan.config
        if self.config.output_dir is None:
            raise UsageError("the config names no output_dir", hint="--set output_dir=DIRECTORY")
        self.output = Path(self.config.output_dir).expanduser()
        torch.manual_seed(self.config.seed)
        self.count_flops = FlopCounter(plan.prepared.model)
        self.objective = build_objective(self.config, plan.prepared, len(plan.sources), processes)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.config, self.parameters)
        self.step = 0
        data = self._resume()
        self.log = MetricsLog(self.output, self.step, self.config.report_to) if processes.main else None
        processes.wait()
        self.stream = SequenceStream(
            plan.dataset(),
            plan.order(),
            processes.share,
            self.config.dataloader_num_workers,
            self._note_skipped,
            data,
        )
        self.sequences = iter(self.stream)
        self.interval = self.new_interval()
        self.peak = 0.0
        self.stopping = False

    def _resume(self) -> dict[str, Any] | None:
        if self.processes.main:
            self.output.mkdir(parents=True, exist_ok=True)
            remove_remains(self.output)
        self.processes.wait()
        found = find_checkpoint(self.output, self.config)
        if found is None:
            return None
        self.step, data = load_checkpoint(found, self.objective, self.optimizer, self.config, self.processes)
        _log.info("going on from %s", found)
        return data

    def run(self, progress: ProgressCallback = no_progress) -> TrainingResult:
        """Train to the last step and export; or, asked by SIGTERM, save and return."""
        total, saved = self.plan.total_steps, self.step
        if self.config.peak_tflops is not None:
            self.peak = self.config.peak_tflops * 1e12
        else:
            self.peak = measured_peak(self.processes.device, self.config.bf16)
        with self._stop_on_signal():
            while self.step < total:
                self.train_step()
                progress("training", self.step, total)
                stop = self.processes.any(self.stopping)
                if self.step % self.config.logging_steps == 0 or self.step == total:
                    self._write_metrics()
                if stop or self.step % self.config.save_steps == 0 or self.step == total:
                    self._save()
                    saved = self.step
                if stop and self.step < total:
                    return TrainingResult(saved, None)
        return TrainingResult(self.step, self._export())

    def train_step(self) -> None:
        """One update."""
        batches = self._next_batches()
        counted = torch.tensor(
            float(sum(batch.loss_tokens for batch in batches)), device=self.processes.device
        )
        tokens = self.processes.sum(counted)
        rate = learning_rate(self.config, self.step, self.plan.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            with self._precision():
                sums = self.objective(batch.to(self.processes.device))
            # Sharded gradients are means over the processes.
            (sums.total * (self.processes.data_parallel / tokens)).backward()
            self.interval.losses_S += sums.by_source_S
            self.interval.tokens_S += sums.tokens_S
        self.grad_norm = clip_gradients(self.parameters, self.config.max_grad_norm)
        self.rate = rate
        self.optimizer.step()
        self.step += 1

    def _next_batches(self) -> list[TrainBatch]:
        config = self.config
        length = config.data.max_length if config.torch_compile else None
        batches = []
        for _ in range(config.gradient_accumulation_steps):
            rows = [next(self.sequences) for _ in range(config.per_device_train_batch_size)]
            samples: list[TrainSample] = [sample for row in rows for sample in row]
            self.interval.samples += len(samples)
            self.interval.tokens += sum(len(sample) for sample in samples)
            self.interval.tiles += sum(len(sample.tiles) for sample in samples)
            self.interval.flops += self.count_flops(samples)
            batches.append(collate(rows, self.plan.shape, length))
        return batches

    def _precision(self) -> Any:
        if not self.config.bf16:
            return nullcontext()
        return torch.autocast(self.processes.device.type, torch.bfloat16)

    def _write_metrics(self) -> None:
        interval, self.interval = self.interval, self.new_interval()
        device = self.processes.device
        counts = [interval.samples, interval.tokens, interval.tiles, interval.flops, self.stream.skipped]
        sums = self.processes.sum(torch.tensor(counts, dtype=torch.float64, device=device)).tolist()
        losses = self.processes.sum(interval.losses_S).tolist()
        tokens = self.processes.sum(interval.tokens_S).tolist()
        if self.log is None:
            return
        # Numbers of the step are read only here: reading waits for the device.
        seconds = time.perf_counter() - interval.began
        by_source = zip(self.plan.names, losses, tokens, strict=True)
        self.log.write(
            {
                "step": self.step,
                "loss": sum(losses) / max(1.0, sum(tokens)),
                "loss_by_source": {name: loss / count for name, loss, count in by_source if count},
                "learning_rate": self.rate,
                "grad_norm": float(self.grad_norm),
                "samples_per_second": sums[0] / seconds,
                "tokens_per_second": sums[1] / seconds,
                "tiles_per_second": sums[2] / seconds,
                "mfu": sums[3] / seconds / (self.peak * self.processes.world),
                "peak_memory_bytes": peak_memory(device),
                "skipped": int(sums[4]),
                "seconds": seconds,
            }
        )

    def new_interval(self) -> Interval:
        """Sums that begin now, at zero."""
        zeros = torch.zeros(len(self.plan.sources), dtype=torch.float64, device=self.processes.device)
        return Interval(zeros, zeros.clone())

    def _note_skipped(self, draw: Draw, sample: SkippedSample) -> None:
        _log.warning("skipped %s: %s", sample.label, sample.reason)
        row = {"step": self.step, "draw": draw.number, "source": self.plan.names[sample.source]}
        append_row(self.output / SKIPPED, {**row, "label": sample.label, "reason": sample.reason})

    def _save(self) -> None:
        save_checkpoint(
            self.output,
            self.step,
            self.objective,
            self.optimizer,
            self.stream.state(),
            self.config,
            self.processes,
        )

    def _export(self) -> Path:
        adapters = self.plan.prepared.wrapped is not None
        output = self.output / ("adapter" if adapters else "final")
        if output.exists():
            return output
        if adapters:
            export_adapters(self.plan.prepared, output, self.processes)
        else:
            export_checkpoint(self.plan.prepared, model_directory(self.config), output, self.processes)
        return output

    @contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self.stopping = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def make_optimizer(config: TrainingConfig, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone: not on norms, biases, gates and layer scales."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=config.optim == "adamw_torch_fused" or None,
    )
