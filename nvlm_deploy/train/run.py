"""One training run, from a config to what it leaves."""

from __future__ import annotations

import os
from pathlib import Path

from nvlm_deploy.config.training import TrainingConfig
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.train.loop import Trainer, TrainingResult
from nvlm_deploy.train.parallel import open_processes
from nvlm_deploy.train.plan import plan_training


def run_training(
    config: TrainingConfig, config_dir: Path, progress: ProgressCallback = no_progress
) -> TrainingResult:
    """Train, alone or as one of the processes of `torchrun`; a run that was stopped goes on.

    Args:
        config_dir: where relative paths in `data.sources` start.

    Raises:
        UsageError, NvlmError: what `plan_training` finds, before any work; too many bad samples.
    """
    plan = plan_training(config, config_dir, int(os.environ.get("WORLD_SIZE", "1")))
    with open_processes(config.tensor_parallel_size) as processes:
        return Trainer(plan, processes).run(progress if processes.main else no_progress)
