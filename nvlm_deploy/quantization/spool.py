"""Hidden states of the calibration set between two steps, on disk: one file per sample and step."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class Spool:
    """Arrays of float32 by step and sample. A step's input stays until the step is finished."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, step: int, sample: int, x: Tensor) -> None:
        """Keep what `step` will see of one sample."""
        folder = self._folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{sample:06}.npy", x.float().cpu().numpy())

    def has(self, step: int, sample: int) -> bool:
        """Whether `step` sees anything of the sample."""
        return self._path(step, sample).exists()

    def read(self, step: int, sample: int) -> Tensor:
        """What `step` sees of one sample."""
        return torch.from_numpy(np.load(self._path(step, sample)))

    def forget(self, step: int) -> None:
        """Remove the input of a finished step."""
        shutil.rmtree(self._folder(step), ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self.directory / f"{step:04}"

    def _path(self, step: int, sample: int) -> Path:
        return self._folder(step) / f"{sample:06}.npy"
