"""One training stage: an objective, a learning-rate schedule, a number of steps, a log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvlm_deploy.models.nvlm import Nvlm
from nvlm_deploy.train.batches import Batch
from nvlm_deploy.train.conversation import IGNORED_LABEL
from nvlm_deploy.train.glyphs import GlyphHead

Objective = Callable[[Nvlm, GlyphHead, Batch], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True, slots=True)
class StageSettings:
    """Hyper-parameters of a stage; AdamW with warm-up and cosine decay as in the paper's Tables 10 and 11."""

    name: str
    steps: int
    max_lr: float
    min_lr: float
    warmup_steps: int
    glyph_weight: float
    freeze: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    grad_clip: float = 1.0


def glyph_objective(model: Nvlm, head: GlyphHead, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Read the characters in every cell; the decoder does not run."""
    loss, read = head(model.encode_tiles(batch.pixels), batch.glyphs)
    return loss, {"glyph_loss": loss.item(), "glyphs_read": read.item()}


def answer_objective(glyph_weight: float) -> Objective:
    """Mean cross-entropy over the assistant's tokens, with the glyph loss beside it."""

    def objective(model: Nvlm, head: GlyphHead, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        visual = model.encode_tiles(batch.pixels)
        hidden = model.hidden_states(batch.input_ids, visual, batch.visual_mask, tiles=batch.tiles)
        counted = batch.labels[:, 1:] != IGNORED_LABEL
        # Only the positions whose next token counts go through lm_head.
        logits = model.language.logits(hidden[:, :-1][counted])
        targets = batch.labels[:, 1:][counted]
        answer_loss = F.cross_entropy(logits.float(), targets)
        glyph_loss, read = head(visual, batch.glyphs)
        right = (logits.argmax(-1) == targets).float().mean()
        metrics = {"loss": answer_loss.item(), "tokens_right": right.item(), "glyphs_read": read.item()}
        return answer_loss + glyph_weight * glyph_loss, metrics

    return objective


@dataclass(slots=True)
class StageProgress:
    """Where a stage stands, so that a killed run can go on: steps done and the optimizer's state."""

    step: int = 0
    optimizer: dict[str, Any] | None = None


def run_stage(
    model: Nvlm,
    head: GlyphHead,
    batches: Iterator[Batch],
    settings: StageSettings,
    progress: StageProgress,
    log: Path,
    save: Callable[[StageProgress], None],
    log_every: int = 50,
    save_every: int = 250,
) -> None:
    """Train in place from `progress` on; append a JSON line to `log` every `log_every` steps."""
    objective = answer_objective(settings.glyph_weight) if settings.name != "read" else glyph_objective
    for name in settings.freeze:
        model.get_submodule(name).requires_grad_(False)
    parameters = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(_decay_groups(parameters, settings), lr=0.0, betas=settings.betas)
    if progress.optimizer is not None:
        optimizer.load_state_dict(progress.optimizer)
    began = time.monotonic()
    for step in range(progress.step + 1, settings.steps + 1):
        lr = _learning_rate(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss, metrics = objective(model, head, next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, settings.grad_clip)
        optimizer.step()
        if step % log_every == 0 or step == settings.steps:
            row = {"stage": settings.name, "step": step, "lr": lr, "grad_norm": norm.item(), **metrics}
            _append(log, {**row, "seconds": time.monotonic() - began})
        if step % save_every == 0 or step == settings.steps:
            save(StageProgress(step, optimizer.state_dict()))


def _decay_groups(parameters: list[nn.Parameter], settings: StageSettings) -> list[dict[str, object]]:
    """Weight decay on matrices only, as usual: not on norms, biases and layer scales."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _learning_rate(step: int, settings: StageSettings) -> float:
    if step < settings.warmup_steps:
        return settings.max_lr * step / settings.warmup_steps
    share = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.min_lr + (settings.max_lr - settings.min_lr) * (1 + math.cos(math.pi * share)) / 2


def _append(log: Path, row: dict[str, object]) -> None:
    rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rounded) + "\n")
