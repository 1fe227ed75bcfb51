"""What a run is going to do, known before any weight is read; `--dry-run` prints this."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.config.blend import DataSource
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.training import TrainingConfig
from nvlm_deploy.errors import UsageError
from nvlm_deploy.models.nvlm import Nvlm
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.preprocess.tokenizer import Tokenizer
from nvlm_deploy.train.build import Prepared, model_directory, prepare_model
from nvlm_deploy.train.data.order import BlendOrder
from nvlm_deploy.train.data.sources import TrainingPart, blend_sources, open_data_source, source_length
from nvlm_deploy.train.data.stream import SampleDataset


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """A config resolved against its model and its data.

    `trained`, `frozen`: parameters by part. `memory`: bytes of one process by kind; activations are an
    estimate from the sequence length.
    """

    config: TrainingConfig
    shape: NvlmConfig
    prepared: Prepared
    sources: Sequence[DataSource]
    opened: Sequence[TrainingPart]
    total_steps: int
    world: int
    trained: dict[str, int]
    frozen: dict[str, int]
    memory: dict[str, int]

    @property
    def names(self) -> list[str]:
        """Names of the sources."""
        return [source.name for source in self.sources]

    def dataset(self) -> SampleDataset:
        """The samples, by draw."""
        tokenizer = Tokenizer.from_directory(model_directory(self.config))
        builder = PromptBuilder(tokenizer, self.shape, self.config.data.tokenization)
        return SampleDataset(self.opened, self.names, builder, self.config.data)

    def order(self) -> BlendOrder:
        """The blend's order, from its beginning."""
        lengths = [len(part) for part in self.opened]
        return BlendOrder([source.weight for source in self.sources], lengths, self.config.seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        config = self.config
        sequences = config.samples_per_device * (self.world // config.tensor_parallel_size)
        return {
            "name": config.name,
            "model": config.model,
            "variant": self.shape.variant,
            "processes": self.world,
            "steps": self.total_steps,
            "sequences_per_step": sequences,
            "max_tokens_per_step": sequences * config.data.max_length,
            "trained": self.trained,
            "frozen": self.frozen,
            "sources": [
                {"name": s.name, "kind": s.kind, "samples": len(o), "weight": s.weight}
                for s, o in zip(self.sources, self.opened, strict=True)
            ],
            "memory_per_process": self.memory,
        }


def plan_training(config: TrainingConfig, config_dir: Path, world: int = 1) -> TrainingPlan:
    """Check a config against its model and data.

    Raises:
        UsageError: no model, no data, or names that match nothing.
        NvlmError: a source is not there or malformed.
    """
    shape = NvlmConfig.from_directory(model_directory(config))
    limit = shape.language.max_position_embeddings
    if config.data.max_length > limit:
        raise UsageError(
            f"data.max_length {config.data.max_length:,} is beyond the model's {limit:,} positions"
        )
    prepared = prepare_model(config, shape)
    sources, base_dir = blend_sources(config.data, config_dir)
    opened = [_open(source, shape, base_dir, config) for source in sources]
    replicas = world // config.tensor_parallel_size
    total_steps = config.max_steps
    if total_steps < 0:
        samples = sum(len(part) for part in opened)
        total_steps = math.ceil(config.num_train_epochs * samples / (config.samples_per_device * replicas))
    trained, frozen = _count(prepared.model)
    return TrainingPlan(
        config=config,
        shape=shape,
        prepared=prepared,
        sources=sources,
        opened=opened,
        total_steps=total_steps,
        world=world,
        trained=trained,
        frozen=frozen,
        memory=_memory(config, prepared, sum(trained.values()), sum(frozen.values()), world),
    )


def _open(source: DataSource, shape: NvlmConfig, base_dir: Path, config: TrainingConfig) -> TrainingPart:
    opened = open_data_source(source, shape.tile_size, base_dir)
    length = source_length(source, opened)
    return TrainingPart.split(opened, source.name, length, config.data.held_out, config.seed)


def _count(model: Nvlm) -> tuple[dict[str, int], dict[str, int]]:
    trained: dict[str, int] = {}
    frozen: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        if ".cross." in name:
            part = "cross-attention"
        if ".lora_" in name:
            part = "adapters"
        counts = trained if parameter.requires_grad else frozen
        counts[part] = counts.get(part, 0) + parameter.numel()
    return trained, frozen


def _memory(
    config: TrainingConfig, prepared: Prepared, trained: int, frozen: int, world: int
) -> dict[str, int]:
    """FP32 weights, gradients and two moments of what is trained; frozen weights; a teacher; activations."""
    language = prepared.model.config.language
    tokens = config.per_device_train_batch_size * config.data.max_length
    element = 2 if config.bf16 else 4
    # Of a layer are kept: the inputs of its linears and norms, or its own input alone.
    kept = 6 * language.hidden_size + 2 * language.q_size + 3 * language.intermediate_size
    layers = (
        language.hidden_size * language.num_layers + kept
        if config.gradient_checkpointing
        else (kept * language.num_layers)
    )
    teacher = {}
    if prepared.teacher is not None:
        teacher["teacher"] = element * sum(p.numel() for p in prepared.teacher.parameters()) // world
    return {
        "weights": (4 * trained + element * frozen) // world,
        "gradients": 4 * trained // world,
        "optimizer": 8 * trained // world,
        **teacher,
        "activations": tokens * element * layers // config.tensor_parallel_size,
    }
