"""The objective that a run trains: model, adapters, shards and weights, one tensor in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.training import TrainingConfig
from nvlm_deploy.errors import UsageError
from nvlm_deploy.models.decoder import DecoderLayer
from nvlm_deploy.models.loading import meta_model
from nvlm_deploy.models.nvlm import Nvlm
from nvlm_deploy.models.vision import VisionLayer
from nvlm_deploy.train.freeze import apply_freeze
from nvlm_deploy.train.heal import (
    HealingObjective,
    add_quantizers,
    multiply_rounded,
    prepare_teacher,
    teacher_directory,
)
from nvlm_deploy.train.lora import adapter_value, add_adapters, add_to_weights, checkpoint_name
from nvlm_deploy.train.objective import AnswerObjective
from nvlm_deploy.train.parallel import Processes, place, spread

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model on the meta device that knows what is trained; `wrapped` is peft's view of it.

    `teacher`: of runs that heal, on the meta device, too.
    """

    model: Nvlm
    wrapped: PeftModel | None
    teacher: Nvlm | None


def model_directory(config: TrainingConfig) -> Path:
    """The checkpoint that training starts from.

    Raises:
        UsageError: the config names none.
    """
    if config.model is None:
        raise UsageError("the config names no model", hint="--set model=CHECKPOINT, in the released layout")
    return Path(config.model).expanduser()


def prepare_model(config: TrainingConfig, shape: NvlmConfig) -> Prepared:
    """Make the model without memory, add quantizers and adapters, and close what is frozen.

    Raises:
        UsageError: `freeze`, `lora` or `heal` names what is not there.
        UnsuitableError: the recipe of `heal` cannot be trained with.
    """
    model = meta_model(shape)
    if config.heal is not None:
        add_quantizers(model, config.heal.recipe)
    wrapped = None
    if config.lora is not None:
        with torch.device("meta"):
            wrapped = add_adapters(model, config.lora, str(config.model))
        if config.heal is not None:
            add_to_weights(wrapped, multiply_rounded)
    else:
        apply_freeze(model, config.freeze)
    for layer in (*model.vision.layers, *model.language.layers):
        assert isinstance(layer, (DecoderLayer, VisionLayer))
        layer.recompute = config.gradient_checkpointing
    return Prepared(model, wrapped, prepare_teacher(config, shape))


def build_objective(
    config: TrainingConfig, prepared: Prepared, num_sources: int, processes: Processes
) -> AnswerObjective:
    """Spread the model over the processes, and read each one's part of the checkpoint.

    What is trained is FP32; with `bf16` what is frozen is kept in BF16.

    Raises:
        NvlmError: the checkpoint is incomplete or does not fit its config.
    """
    model, teacher = prepared.model, prepared.teacher
    frozen_dtype = torch.bfloat16 if config.bf16 else torch.float32
    recompute = config.gradient_checkpointing
    if teacher is None or config.heal is None:
        objective = AnswerObjective(model, num_sources, recompute)
    else:
        objective = HealingObjective(model, teacher, config.heal, num_sources, recompute)
    models = [model] if teacher is None else [model, teacher]
    spread(objective, models, processes, config.bf16)
    _fill(model, model_directory(config), frozen_dtype, config.seed, processes)
    if teacher is not None:
        _fill(teacher, teacher_directory(config), frozen_dtype, config.seed, processes)
    objective.train()
    if config.torch_compile:
        for layer in (*model.vision.layers, *model.language.layers):
            layer.compile(backend=config.torch_compile_backend)
    return objective


def _fill(model: Nvlm, directory: Path, frozen_dtype: torch.dtype, seed: int, processes: Processes) -> None:
    """Read this process's part of the weights, one tensor at a time."""
    weights = ModelWeights(CheckpointReader(directory))
    for name, parameter in list(model.named_parameters()):
        value = adapter_value(name, parameter.shape, seed)
        if value is None:
            dtype = torch.float32 if parameter.requires_grad else frozen_dtype
            value = weights.read(checkpoint_name(name), dtype)
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        new = nn.Parameter(place(value, parameter, processes.device), requires_grad=parameter.requires_grad)
        # By loading and not by setting: sharded modules keep track of their parameters.
        module.load_state_dict({leaf: new}, strict=False, assign=True)
