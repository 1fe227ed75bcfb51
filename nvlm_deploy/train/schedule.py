"""The learning rate of every step, by the names of transformers' schedulers."""

from __future__ import annotations

import math

from nvlm_deploy.config.training import TrainingConfig


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Rate of the `step`-th update, counted from 0, as transformers' `get_scheduler` has it.

    It rises linearly from 0 over the warm-up, and then follows `lr_scheduler_type` to step `total_steps`.
    """
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    if step < warmup:
        return config.learning_rate * step / warmup
    if config.lr_scheduler_type == "constant_with_warmup":
        return config.learning_rate
    share = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if config.lr_scheduler_type == "linear":
        return config.learning_rate * (1 - share)
    cosine = 0.5 * (1 + math.cos(math.pi * share))
    least = config.lr_scheduler_kwargs.min_lr if config.lr_scheduler_type == "cosine_with_min_lr" else 0.0
    return least + (config.learning_rate - least) * cosine
