"""Hidden states of the calibration set between two steps, on disk: one file per sample and step."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from nvlm_deploy.checkpoint.safetensors_file import read_elements, read_header, write_file

_NAME = "x"


class Spool:
    """Arrays of float32 by step and sample. A step's input stays until the step is finished."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, step: int, sample: int, x: Tensor) -> None:
        """Keep what `step` will see of one sample."""
        path = self._path(step, sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, {_NAME: x.float()})

    def has(self, step: int, sample: int) -> bool:
        """Whether `step` sees anything of the sample."""
        return self._path(step, sample).exists()

    def read(self, step: int, sample: int) -> Tensor:
        """What `step` sees of one sample.

        Raises:
            NvlmError: the file is not what was written.
        """
        path = self._path(step, sample)
        info = read_header(path).tensors[_NAME]
        return read_elements(path, info, 0, info.num_elements, torch.float32).view(info.shape)

    def forget(self, step: int) -> None:
        """Remove the input of a finished step."""
        shutil.rmtree(self._folder(step), ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self.directory / f"{step:04}"

    def _path(self, step: int, sample: int) -> Path:
        return self._folder(step) / f"{sample:06}.safetensors"
