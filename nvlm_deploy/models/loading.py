"""Models from checkpoints: on the meta device from the config alone, or filled with streamed weights."""

from __future__ import annotations

from pathlib import Path

import torch

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.config.model import NvlmConfig, Variant
from nvlm_deploy.models.nvlm import Nvlm
from nvlm_deploy.models.nvlm_d import NvlmD
from nvlm_deploy.models.nvlm_h import NvlmH
from nvlm_deploy.models.nvlm_x import NvlmX

VARIANTS: dict[Variant, type[Nvlm]] = {"D": NvlmD, "X": NvlmX, "H": NvlmH}


def new_model(config: NvlmConfig) -> Nvlm:
    """A model of the config's variant with torch's default weights."""
    return VARIANTS[config.variant](config)


def meta_model(config: NvlmConfig) -> Nvlm:
    """Instantiate without memory: the full 72B takes milliseconds and no weights."""
    with torch.device("meta"):
        return new_model(config)


def load_model(directory: Path, dtype: torch.dtype = torch.float32) -> Nvlm:
    """Load a checkpoint in the released layout, one tensor at a time, in evaluation mode.

    Raises:
        NvlmError: the checkpoint is incomplete or does not fit its config.
    """
    reader = CheckpointReader(directory)
    model = meta_model(reader.config)
    weights = ModelWeights(reader)
    state = {name: weights.read(name, dtype) for name in weights.names()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()
