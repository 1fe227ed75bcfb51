"""Healing: the student's numbers are the engine's, and it comes nearer to its teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.training import TrainingConfig
from nvlm_deploy.errors import UsageError
from nvlm_deploy.models import load_model
from nvlm_deploy.models.loading import new_model
from nvlm_deploy.models.nvlm import Nvlm
from nvlm_deploy.quantization.fake import WeightQuantizer
from nvlm_deploy.synthetic.shapes import released_style_config
from nvlm_deploy.train.build import build_objective
from nvlm_deploy.train.data.batch import collate
from nvlm_deploy.train.data.sample import TrainSample
from nvlm_deploy.train.export import merge_adapters
from nvlm_deploy.train.heal import HealingObjective, RoundedLinear, add_quantizers
from nvlm_deploy.train.loop import Trainer
from nvlm_deploy.train.parallel import open_processes
from nvlm_deploy.train.plan import TrainingPlan, plan_training
from tests.training import SHAPE, settings, train

HARSH = "int4-rtn-g128"
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj", "down_proj"]}


def plan_of(checkpoint: Path, lines: Path, output: Path, **changes: Any) -> TrainingPlan:
    values = settings(checkpoint, lines, output, **changes)
    return plan_training(TrainingConfig.model_validate(values), lines.parent)


def as_engines_have_it(directory: Path, recipe: str) -> Nvlm:
    """The model of a checkpoint whose matrices were rounded as they are when an engine is written."""
    model = load_model(directory)
    state = model.state_dict()
    add_quantizers(model, recipe)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("variant", "DXH")
def test_gradients_reach_every_rounded_matrix(
    checkpoints: dict[str, Path], lines: Path, tmp_path: Path, variant: str
) -> None:
    plan = plan_of(checkpoints[variant], lines, tmp_path, heal={"recipe": HARSH}, freeze=[])
    with open_processes() as processes:
        objective = build_objective(plan.config, plan.prepared, 1, processes)
    objective(collate([[first_sample(plan)]], plan.shape)).total.backward()
    rounded = {name for name, m in objective.named_modules() if isinstance(m, RoundedLinear)}
    # The tower, the projector and the decoder of two layers have more than twenty matrices.
    assert len(rounded) > 20
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == name.startswith("teacher."), name
    weight = plan.prepared.model.language.layers[0].get_submodule("mlp.up_proj").weight
    assert isinstance(weight, torch.Tensor)
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def test_the_loss_is_zero_without_rounding_and_grows_with_it(
    checkpoints: dict[str, Path], lines: Path, tmp_path: Path
) -> None:
    found = {}
    for recipe in ("fp32", "int8", HARSH):
        plan = plan_of(checkpoints["H"], lines, tmp_path, heal={"recipe": recipe, "temperature": 2.0})
        with open_processes() as processes:
            objective = build_objective(plan.config, plan.prepared, 1, processes)
        batch = collate([[first_sample(plan)]], plan.shape)
        found[recipe] = float(objective(batch).total.detach())
    assert abs(found["fp32"]) < 1e-6
    assert found[HARSH] > 1e-5
    assert abs(found["int8"]) < found[HARSH] / 10


def first_sample(plan: TrainingPlan) -> TrainSample:
    sample = plan.dataset()[next(iter(plan.order()))]
    assert isinstance(sample, TrainSample)
    return sample


def test_cross_entropy_is_added_by_its_weight(
    checkpoints: dict[str, Path], lines: Path, tmp_path: Path
) -> None:
    totals = []
    for heal in ({"recipe": "fp32", "cross_entropy_weight": 0.5}, None):
        plan = plan_of(checkpoints["D"], lines, tmp_path, heal=heal)
        with open_processes() as processes:
            objective = build_objective(plan.config, plan.prepared, 1, processes)
        totals.append(float(objective(collate([[first_sample(plan)]], plan.shape)).total.detach()))
    # Full precision means the checkpoint's own dtypes, so that nothing else is in the sum.
    assert totals[0] == pytest.approx(totals[1] / 2, rel=1e-5)


def test_what_was_trained_is_what_the_exported_checkpoint_gives(
    checkpoints: dict[str, Path], lines: Path, tmp_path: Path
) -> None:
    plan = plan_of(checkpoints["D"], lines, tmp_path / "out", heal={"recipe": HARSH}, freeze=[], max_steps=2)
    with open_processes() as processes:
        output = Trainer(plan, processes).run().output
    assert output is not None
    rounded = as_engines_have_it(output, HARSH)
    for name, module in plan.prepared.model.named_modules():
        if isinstance(module, RoundedLinear):
            again = rounded.get_submodule(name)
            assert isinstance(again, RoundedLinear)
            assert torch.equal(module.quantizer(module.weight), again.quantizer(again.weight)), name


def test_adapters_are_rounded_with_their_weights(
    checkpoints: dict[str, Path], lines: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "heal": {"recipe": HARSH},
        "freeze": [],
        "lora": LORA,
        "learning_rate": 5e-3,
        "max_steps": 2,
    }
    result = train(checkpoints["D"], lines, tmp_path / "out", **options)
    assert result.output is not None
    merge_adapters(checkpoints["D"], result.output, tmp_path / "merged")
    plan = plan_of(checkpoints["D"], lines, tmp_path / "out", **options)
    with open_processes() as processes:
        trainer = Trainer(plan, processes)
    batch = collate([[first_sample(plan)]], plan.shape)
    healed = as_engines_have_it(tmp_path / "merged", HARSH)
    assert isinstance(trainer.objective, HealingObjective)
    with torch.no_grad():
        wanted = trainer.objective.counted(batch)[0]
        given = trainer.objective.hidden_states(healed, batch)
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)


def test_a_shared_embedding_is_rounded_as_the_head_where_it_is_the_head() -> None:
    config = NvlmConfig.from_dict(released_style_config(SHAPE))
    model = new_model(replace(config, language=replace(config.language, tie_word_embeddings=True)))
    state = model.state_dict()
    add_quantizers(model, "int4-rtn")
    model.load_state_dict(state)
    table, hidden = model.language.embed_tokens, torch.randn(3, config.language.hidden_size)
    expected = hidden @ _rounded(model.language.round_head, table.weight).T
    torch.testing.assert_close(model.language.logits(hidden), expected)
    ids = torch.arange(5)
    assert torch.equal(table(ids), _rounded(table.quantizer, table.weight)[:5])
    assert not torch.equal(_rounded(model.language.round_head, table.weight)[:5], table(ids))


def _rounded(quantizer: Any, weight: torch.Tensor) -> torch.Tensor:
    assert isinstance(quantizer, WeightQuantizer)
    return quantizer.round(weight)


def test_a_teacher_reads_what_the_student_reads(
    checkpoints: dict[str, Path], lines: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="another variant than the model: X and D"):
        plan_of(checkpoints["D"], lines, tmp_path, heal={"recipe": HARSH, "teacher": str(checkpoints["X"])})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensor_parallel_size": 2}, "other scales"),
        ({"freeze": [], "lora": {**LORA, "lora_dropout": 0.1}}, "cannot be dropped"),
    ],
)
def test_settings_that_do_not_go_with_healing(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainingConfig.model_validate(
            settings(Path("model"), Path("lines"), Path("out"), heal={"recipe": HARSH}, **changes)
        )
