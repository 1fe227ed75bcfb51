"""Training configs: the shipped ones are the paper's, misspelt keys are errors, freeze says what it means."""

from __future__ import annotations

from typing import Any

import pytest

from nvlm_deploy.config.catalog import list_names
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.training import TrainingConfig, read_training_config
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.models import Nvlm, meta_model
from nvlm_deploy.preprocess import PromptBuilder
from nvlm_deploy.synthetic.shapes import SHAPES, cross_style_config, released_style_config
from nvlm_deploy.train.freeze import apply_freeze
from nvlm_deploy.train.schedule import learning_rate

# Tables 10 and 11: sequences per step, rates, warm-up, betas, decay, clipping, length, tiles, steps.
TABLES = {
    "nvlm-d-pretrain": (2048, 1e-4, 2.5e-5, 500, (0.9, 0.95), 0.1, 10, 512, 1, 20_000),
    "nvlm-x-pretrain": (2048, 1e-4, 1e-5, 1000, (0.9, 0.95), 0.05, 1, 512, 1, 20_000),
    "nvlm-h-pretrain": (2048, 1e-4, 1e-5, 1000, (0.9, 0.98), 0.05, 1, 512, 6, 20_000),
    "nvlm-d-sft": (128, 2e-6, 2.5e-7, 1000, (0.9, 0.98), 0.1, 10, 3200, 6, 40_000),
    "nvlm-x-sft": (256, 1e-5, 1e-7, 500, (0.9, 0.98), 0.05, 1, 1024, 6, 20_000),
    "nvlm-h-sft": (256, 1e-5, 1e-7, 1000, (0.9, 0.98), 0.05, 1, 1280, 6, 40_000),
}
# The 64 GPUs that the shipped configs are made for.
GPUS = 64


def paper_model(variant: str) -> Nvlm:
    config: dict[str, Any] = released_style_config(SHAPES["nvlm-d-72b"])
    if variant in ("X", "H"):
        config = cross_style_config(SHAPES["nvlm-d-72b"], variant, range(7, 80, 8))  # type: ignore[arg-type]
    return meta_model(NvlmConfig.from_dict(config))


@pytest.mark.parametrize("name", TABLES)
def test_shipped_configs_have_the_papers_hyper_parameters(name: str) -> None:
    config, _ = read_training_config(name)
    sequences = config.samples_per_device * GPUS // config.tensor_parallel_size
    assert config.lr_scheduler_type == "cosine_with_min_lr"
    assert TABLES[name] == (
        sequences,
        config.learning_rate,
        config.lr_scheduler_kwargs.min_lr,
        config.warmup_steps,
        (config.adam_beta1, config.adam_beta2),
        config.weight_decay,
        config.max_grad_norm,
        config.data.max_length,
        config.data.max_tiles,
        config.max_steps,
    )


@pytest.mark.parametrize("name", TABLES)
def test_shipped_stages_train_what_the_paper_trains(name: str) -> None:
    variant, stage = name.split("-")[1].upper(), name.split("-")[2]
    model = paper_model(variant)
    apply_freeze(model, read_training_config(name)[0].freeze)
    trained = {
        n.replace("language.layers", "L").split(".")[0]
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    inside = [n for n, p in model.named_parameters() if p.requires_grad and n.startswith("language.")]
    if stage == "pretrain":
        assert all(".cross." in n for n in inside)
        assert trained == ({"projector"} if variant == "D" else {"projector", "L"})
        assert len({n.split(".")[2] for n in inside}) == (0 if variant == "D" else 10)
    else:
        assert trained == {"projector", "L", "language"}
        assert len(inside) == sum(n.startswith("language.") for n, _ in model.named_parameters())


def test_every_shipped_config_is_read() -> None:
    for name in list_names("training config"):
        config, _ = read_training_config(name)
        assert config.name == name


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("learning_rat=1", "learning_rat' is not known", "learning_rate"),
        ("lora.rank=4", "lora.rank' is not known", None),
        ("data.max_lenght=4", "max_lenght' is not known", "max_length"),
        ("max_steps=0", "nothing to train", None),
        ("warmup_ratio=0.1", "both warmup_steps and warmup_ratio", None),
        ("data.sources=[{kind: lava, name: a, path: b}]", "no such kind", None),
        ("data.sources=[{kind: llava, name: a, pth: b}]", "did you mean 'path'", None),
    ],
)
def test_mistakes_are_named(override: str, message: str, hint: str | None) -> None:
    with pytest.raises(NvlmError) as caught:
        read_training_config("nvlm-d-sft", [override])
    assert message in caught.value.message
    assert hint is None or hint in str(caught.value.hint)


def test_numbers_without_a_dot_are_numbers() -> None:
    assert read_training_config("nvlm-d-sft", ["learning_rate=3e-5"])[0].learning_rate == 3e-5


def test_lora_and_freeze_exclude_each_other() -> None:
    with pytest.raises(NvlmError, match="leave out freeze"):
        read_training_config("nvlm-d-sft", ["lora={target_modules: [q_proj]}"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["vison"], "'vison' matches no module"),
        (["vision", "projector", "language"], "leaves nothing to train"),
        (["language", "!language.layers.*.cross"], "matches no module"),
    ],
)
def test_freeze_is_checked_against_the_model(
    builders: dict[str, PromptBuilder], names: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message.replace("!", "")[-20:]):
        apply_freeze(meta_model(builders["D"].config), names)


@pytest.mark.parametrize(
    "kind", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"]
)
def test_rates_are_those_of_transformers(kind: str) -> None:
    import torch
    from transformers import get_scheduler

    values: dict[str, Any] = {
        "learning_rate": 2e-3,
        "lr_scheduler_type": kind,
        "warmup_steps": 4,
        "max_steps": 20,
    }
    if kind == "cosine_with_min_lr":
        values["lr_scheduler_kwargs"] = {"min_lr": 1e-4}
    config = TrainingConfig.model_validate(
        {"name": "a", "description": "b", "data": {"max_length": 8}, **values}
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-3)
    scheduler = get_scheduler(
        kind,
        optimizer,
        num_warmup_steps=4,
        num_training_steps=20,
        scheduler_specific_kwargs=values.get("lr_scheduler_kwargs"),
    )
    for step in range(20):
        assert learning_rate(config, step, 20) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        scheduler.step()
