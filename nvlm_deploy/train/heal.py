"""Healing: a model whose matrices are those of a recipe learns to answer as it did in full precision.

The quantizers stand in the model's own modules, on parameters of the same names: sharding, checkpoints and
export know nothing of them.

Shapes: C positions whose prediction counts, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.training import HealSection, TrainingConfig
from nvlm_deploy.errors import UsageError
from nvlm_deploy.models.loading import meta_model
from nvlm_deploy.models.nvlm import Nvlm
from nvlm_deploy.quantization.fake import WeightQuantizer, weight_quantizers
from nvlm_deploy.quantization.plan import EMBEDDING, LM_HEAD
from nvlm_deploy.train.data.batch import TrainBatch
from nvlm_deploy.train.objective import AnswerObjective


class RoundedLinear(nn.Linear):
    """A linear that multiplies with its weight as an engine will have it."""

    def __init__(self, linear: nn.Linear, quantizer: WeightQuantizer) -> None:
        super().__init__(
            linear.in_features, linear.out_features, linear.bias is not None, device=linear.weight.device
        )
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        return multiply_rounded(self, x, self.weight)


class RoundedEmbedding(nn.Embedding):
    """A table that is looked up as an engine will have it."""

    def __init__(self, table: nn.Embedding, quantizer: WeightQuantizer) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, device=table.weight.device)
        self.quantizer = quantizer

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.quantizer(self.weight))


class HealingObjective(AnswerObjective):
    """Divergence of the student's predictions from the teacher's, where the answers are.

    A position's loss is KL(teacher || student) x temperature squared, in nats, both softened by the
    temperature, plus `cross_entropy_weight` times the cross-entropy of the token.
    """

    def __init__(
        self, model: Nvlm, teacher: Nvlm, heal: HealSection, num_sources: int, recompute: bool
    ) -> None:
        """`teacher` is frozen, and quantized nowhere."""
        super().__init__(model, num_sources, recompute)
        self.teacher, self.heal = teacher, heal

    def counted(self, batch: TrainBatch) -> tuple[Tensor, ...]:
        with torch.no_grad():
            teacher_CD = self.hidden_states(self.teacher, batch)
        return (*super().counted(batch), teacher_CD)

    def losses(self, *counted: Tensor) -> Tensor:
        hidden_CD, targets_C, teacher_CD = counted
        logits_CV = self.model.language.logits(hidden_CD).float()
        with torch.no_grad():
            wanted_CV = self.teacher.language.logits(teacher_CD).float()
        heat = self.heal.temperature
        log_p_CV, log_q_CV = (wanted_CV / heat).log_softmax(-1), (logits_CV / heat).log_softmax(-1)
        losses_C = F.kl_div(log_q_CV, log_p_CV, log_target=True, reduction="none").sum(-1) * heat**2
        if self.heal.cross_entropy_weight:
            entropy_C = F.cross_entropy(logits_CV, targets_C, reduction="none")
            losses_C = losses_C + self.heal.cross_entropy_weight * entropy_C
        return losses_C


def add_quantizers(model: Nvlm, recipe: str) -> None:
    """Put a recipe's quantizers before all matrices of a model without memory, in place.

    Raises:
        UsageError: there is no such recipe.
        UnsuitableError: it cannot be trained with; see `weight_quantizers`.
        NvlmError: it does not fit the model.
    """
    install_quantizers(model, weight_quantizers(load_yaml_model("recipe", recipe, Recipe), model.config))


def install_quantizers(model: Nvlm, quantizers: Mapping[str, WeightQuantizer]) -> None:
    """Put quantizers before matrices, by the names of parameters, in place."""
    for name, quantizer in quantizers.items():
        if name == LM_HEAD and model.config.language.tie_word_embeddings:
            model.language.round_head = quantizer
            continue
        owner = name.removesuffix(".weight")
        parent, _, leaf = owner.rpartition(".")
        module = model.get_submodule(owner)
        rounded: nn.Module
        if name == EMBEDDING:
            assert isinstance(module, nn.Embedding)
            rounded = RoundedEmbedding(module, quantizer)
        else:
            assert isinstance(module, nn.Linear)
            rounded = RoundedLinear(module, quantizer)
        setattr(model.get_submodule(parent), leaf, rounded)


def multiply_rounded(linear: nn.Module, x: Tensor, weight_NK: Tensor) -> Tensor:
    """What a rounded linear gives with another weight than its own."""
    assert isinstance(linear, RoundedLinear), "quantizers come before adapters"
    return F.linear(x, linear.quantizer(weight_NK), linear.bias)


def prepare_teacher(config: TrainingConfig, student: NvlmConfig) -> Nvlm | None:
    """The frozen teacher on the meta device; None if nothing is healed.

    Raises:
        UsageError: it does not read what the student reads.
    """
    if config.heal is None:
        return None
    directory = teacher_directory(config)
    shape = NvlmConfig.from_directory(directory)
    for what, taught, learned in (
        ("variant", shape.variant, student.variant),
        ("tile size", shape.tile_size, student.tile_size),
        ("visual tokens per tile", shape.visual_tokens_per_tile, student.visual_tokens_per_tile),
        ("vocabulary", shape.language.vocab_size, student.language.vocab_size),
    ):
        if taught != learned:
            raise UsageError(
                f"heal.teacher {directory} has another {what} than the model: {taught} and {learned}",
                hint="a teacher reads the same tokens and tiles; leave heal.teacher out for the model itself",
            )
    return meta_model(shape).requires_grad_(False)


def teacher_directory(config: TrainingConfig) -> Path:
    """The checkpoint that is learned from: the one that training starts from, unless another is named."""
    assert config.heal is not None, "asked of runs that heal alone"
    named = config.heal.teacher or config.model
    return Path(str(named)).expanduser()
