"""Training configs: one YAML file per run, with the names of `transformers.TrainingArguments` and peft."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nvlm_deploy.config.blend import Sources, check_names
from nvlm_deploy.config.by_kind import Section
from nvlm_deploy.config.catalog import find, load_yaml_model
from nvlm_deploy.config.numbers import Number

Scheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"]
_Text = Annotated[str, Field(min_length=1)]
_Rate = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[Number, Field(ge=0, lt=1)]
_Count = Annotated[int, Field(ge=1)]


class SchedulerKwargs(Section):
    """`lr_scheduler_kwargs`."""

    min_lr: _Rate = 0.0


class LoraSection(Section):
    """What goes to peft's `LoraConfig`.

    `target_modules` are names' ends (`q_proj`) or one regular expression of whole names; `modules_to_save`
    are trained in full beside the adapters and kept with them.
    """

    r: _Count = 8
    lora_alpha: Annotated[Number, Field(gt=0)] = 8.0
    lora_dropout: _Share = 0.0
    target_modules: list[_Text] | _Text
    modules_to_save: list[_Text] | None = None
    use_rslora: bool = False
    bias: Literal["none"] = "none"


class HealSection(Section):
    """Training with a recipe's quantizers before the weights, towards a teacher in full precision.

    `teacher` is a checkpoint, by default the one that training starts from. The loss is the KL divergence of
    predictions at `temperature`, and `cross_entropy_weight` times the cross-entropy of the answers.
    """

    recipe: _Text = Field(description="a recipe's name, or a .yaml file")
    teacher: _Text | None = None
    temperature: Annotated[Number, Field(gt=0)] = 1.0
    cross_entropy_weight: _Rate = 0.0


class DataSection(Section):
    """What is shown, and how it becomes sequences of at most `max_length` tokens.

    `blend` is the path of a blend file; `sources` is the same list written here. `max_tiles` is the limit
    per image without thumbnail, at most the model's own; a sample that is too long gets fewer
    (12 > 8 > 6 > 4 > 2 > 1). `packing` fills each sequence with several samples, chosen among
    `packing_buffer` that are read ahead; `max_tiles_per_sequence` limits the tiles of such a sequence.
    `held_out` conversations of each source are never trained on: `export-bundle` makes probes of them.
    """

    blend: _Text | None = None
    sources: Sources | None = Field(default=None, min_length=1)
    max_length: _Count
    max_tiles: _Count | None = None
    packing: bool = False
    packing_buffer: _Count = 64
    max_tiles_per_sequence: _Count | None = None
    tokenization: Literal["hf", "megatron"] = "hf"
    held_out: int = Field(default=0, ge=0)
    max_skipped: int = Field(default=100, ge=0, description="bad samples by process; one more is an error")

    @model_validator(mode="after")
    def _check(self) -> DataSection:
        if self.blend is not None and self.sources is not None:
            raise ValueError("both 'blend' and 'sources' are given: one of them is enough")
        check_names(self.sources or ())
        return self


class TrainingConfig(Section):
    """One training run. Paths of `model`, `output_dir` and `data.blend` start at the current directory.

    `freeze` names modules (globs such as `language.layers.*.cross`); a name behind `!` opens what names
    before it have closed. With `lora` all is frozen but the adapters. `max_steps` -1 means `num_train_epochs`
    passes over the blend.
    """

    name: _Text
    description: _Text
    model: _Text | None = Field(default=None, description="a checkpoint in the released layout")
    output_dir: _Text | None = None
    data: DataSection
    freeze: list[_Text] = Field(default_factory=list)
    lora: LoraSection | None = None
    heal: HealSection | None = None

    max_steps: int = Field(default=-1, ge=-1)
    num_train_epochs: Annotated[Number, Field(gt=0)] = 1.0
    per_device_train_batch_size: _Count = 1
    gradient_accumulation_steps: _Count = 1
    learning_rate: _Rate
    lr_scheduler_type: Scheduler = "cosine_with_min_lr"
    lr_scheduler_kwargs: SchedulerKwargs = SchedulerKwargs()
    warmup_steps: int = Field(default=0, ge=0)
    warmup_ratio: _Share = 0.0
    optim: Literal["adamw_torch", "adamw_torch_fused"] = "adamw_torch"
    weight_decay: _Rate = 0.0
    adam_beta1: _Share = 0.9
    adam_beta2: _Share = 0.999
    adam_epsilon: _Rate = 1e-8
    max_grad_norm: Annotated[Number, Field(gt=0)] = 1.0

    bf16: bool = False
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    torch_compile_backend: _Text = "inductor"
    tensor_parallel_size: _Count = 1

    logging_steps: _Count = 10
    save_steps: _Count = 500
    save_total_limit: _Count | None = None
    report_to: list[Literal["tensorboard"]] = Field(default_factory=list)
    seed: int = Field(default=42, ge=0)
    dataloader_num_workers: int = Field(default=0, ge=0)
    resume_from_checkpoint: bool | _Text = True
    peak_tflops: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="of one device, for MFU; measured with a matrix product unless given"
    )

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if self.max_steps == 0:
            raise ValueError("max_steps is 0: there is nothing to train; -1 goes by num_train_epochs")
        if self.max_steps < 0 and self.data.packing:
            raise ValueError(
                "data.packing needs max_steps: how many sequences an epoch fills is known only afterwards"
            )
        if self.lora is not None and self.freeze:
            raise ValueError("with lora all but the adapters is frozen: leave out freeze")
        if self.heal is not None and self.tensor_parallel_size > 1:
            raise ValueError(
                "heal needs tensor_parallel_size 1: groups of a matrix that is split have other scales"
            )
        if self.heal is not None and self.lora is not None and self.lora.lora_dropout:
            raise ValueError(
                "heal rounds weights with their adapters, which cannot be dropped: lora_dropout is 0"
            )
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("both warmup_steps and warmup_ratio are given: one of them is enough")
        return self

    @property
    def samples_per_device(self) -> int:
        """Sequences that one process works on in one step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return self.model_dump(mode="json")


def read_training_config(name_or_path: str, overrides: Sequence[str] = ()) -> tuple[TrainingConfig, Path]:
    """Read a shipped config by its name, or any config by the path of its YAML file.

    Returns:
        The config, and the folder that relative paths in its `data.sources` start from: that of its file.

    Raises:
        UsageError: an unknown name, or an override that the schema refuses.
        NvlmError: the file is not what the schema says; the message names file and key.
    """
    config = load_yaml_model("training config", name_or_path, TrainingConfig, overrides)
    return config, find("training config", name_or_path).path.parent
