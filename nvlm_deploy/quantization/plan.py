"""A recipe resolved against one model: how each of its parameters is stored, and how large that is.

Only names and shapes are needed, so a plan for the 72B takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nvlm_deploy.config.manifest import PartSize
from nvlm_deploy.config.recipe import (
    FLOAT_TYPES,
    NVFP4_GROUP,
    STATIC_ACTIVATIONS,
    ActivationType,
    CalibratedAlgorithm,
    Recipe,
    WeightFormat,
    WeightType,
)
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.quantization.rules import MatchedRule, check_fused, check_never, match_rules

Shape = tuple[int, ...]

EMBEDDING = "language.embed_tokens.weight"
LM_HEAD = "language.lm_head.weight"
PARTS = ("vision", "projector", "language", "lm_head", "embedding")

_BITS: dict[WeightType, int] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "fp8": 8, "nvfp4": 4}
# Scales that are made while an engine is written are FP16; those of quantized checkpoints are FP32.
_SCALE_BYTES = 2
_CALIBRATED_SCALE_BYTES = 4
_REFERENCE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Storage:
    """How one tensor's numbers are stored.

    `group_size` is 0 where a scale belongs to a row (INT8) or to the matrix (FP8), and for floats.
    `algorithm` made the numbers of a quantized checkpoint; None: the engine's writer rounds to nearest.
    """

    format: WeightType
    group_size: int = 0
    symmetric: bool = True
    activations: ActivationType = "fp32"
    algorithm: CalibratedAlgorithm | None = None

    @classmethod
    def of(cls, weights: WeightFormat, algorithm: CalibratedAlgorithm | None = None) -> Storage:
        """Return the storage that a recipe's section asks for."""
        size = NVFP4_GROUP if weights.format == "nvfp4" else weights.group_size or 0
        if not weights.quantized:
            algorithm = None
        return cls(weights.format, size, weights.symmetric, weights.activations, algorithm)

    @property
    def bits(self) -> int:
        """Bits per weight, without scales."""
        return _BITS[self.format]

    @property
    def quantized(self) -> bool:
        """Whether the numbers are stored with scales."""
        return self.format not in FLOAT_TYPES

    @property
    def calibrated(self) -> bool:
        """Whether the numbers depend on what the matrix sees."""
        searched = self.algorithm not in (None, "max")
        return self.quantized and (searched or self.activations in STATIC_ACTIVATIONS)

    def groups(self, columns: int) -> int:
        """Number of scales per row; the last group may be partial."""
        return -(-columns // self.group_size) if self.group_size else 1

    def nbytes(self, shape: Shape) -> int:
        """Bytes of a tensor with scales and zero points; rows are padded to whole groups."""
        if not self.quantized:
            return math.prod(shape) * self.bits // 8
        rows, columns = shape
        if self.format == "fp8":
            return rows * columns + _CALIBRATED_SCALE_BYTES
        if self.format == "nvfp4":
            return rows * (columns // 2 + self.groups(columns)) + _CALIBRATED_SCALE_BYTES
        groups = self.groups(columns)
        width = groups * self.group_size if self.group_size else columns
        per_row = width * self.bits // 8 + groups * (
            _CALIBRATED_SCALE_BYTES if self.algorithm else _SCALE_BYTES
        )
        if not self.symmetric:
            per_row += -(-groups * self.bits // 8)
        return rows * per_row


FULL_PRECISION = Storage("fp32")


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of the engine. `source` is the parameter that it is made of: not its own name for a tied
    `lm_head`. `matrix`: whether it belongs to the matrices that a recipe's formats are about."""

    name: str
    source: str
    shape: Shape
    part: str
    matrix: bool
    storage: Storage
    kept: str | None = None

    @property
    def before(self) -> int:
        """Bytes of the parameter in 16 bits, the precision of the released model."""
        return 0 if self.source != self.name else math.prod(self.shape) * _REFERENCE_BYTES


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """Per-tensor storage of one model under one recipe, in the order of the model's parameters."""

    recipe: str
    kv_cache: str
    tensors: Mapping[str, TensorPlan]

    def storage(self, name: str) -> Storage:
        """Storage of one tensor."""
        return self.tensors[name].storage

    @property
    def tied(self) -> bool:
        """Whether `lm_head` is made of the embedding."""
        return self.tensors[LM_HEAD].source == EMBEDDING

    @property
    def shares_embedding(self) -> bool:
        """Whether a tied `lm_head` also has the embedding's storage, so that the bytes are kept once."""
        head, table = self.tensors[LM_HEAD].storage, self.tensors[EMBEDDING].storage
        columns = self.tensors[EMBEDDING].shape[1]
        # Rows of a quantized lm_head are padded to whole groups, those of an embedding are not.
        fits = not table.quantized or columns % table.group_size == 0
        stored = (head.format, head.group_size, head.symmetric)
        return self.tied and fits and stored == (table.format, table.group_size, table.symmetric)

    def stored_bytes(self, name: str) -> int:
        """Bytes of one tensor in the engine; 0 for an `lm_head` that shares the embedding's."""
        tensor = self.tensors[name]
        if name == LM_HEAD and self.shares_embedding:
            return 0
        return tensor.storage.nbytes(tensor.shape)

    def sizes(self) -> tuple[PartSize, ...]:
        """Bytes before and after of every part, in the order of `PARTS`."""
        return tuple(self._part(part) for part in PARTS)

    def _part(self, part: str) -> PartSize:
        tensors = [t for t in self.tensors.values() if t.part == part]
        linear = [t for t in tensors if t.matrix]
        return PartSize(
            part=part,
            before=sum(t.before for t in tensors),
            after=sum(self.stored_bytes(t.name) for t in tensors),
            linear_before=sum(t.before for t in linear),
            linear_after=sum(self.stored_bytes(t.name) for t in linear),
        )


def resolve(recipe: Recipe, shapes: Mapping[str, Shape]) -> QuantizationPlan:
    """Resolve `recipe` for a model whose parameters have `shapes` (by the names of `nvlm_deploy.models`).

    Raises:
        NvlmError: a rule matches nothing in the model, or nothing that an earlier rule has not matched; the
            recipe quantizes what it says never to, or stores matrices differently that engines fuse.
        UnsuitableError: a group size does not divide the width of a matrix.
    """
    sources = {name: name for name in shapes}
    sources.setdefault(LM_HEAD, EMBEDDING)
    matrices = [name for name, source in sources.items() if _is_matrix(name, shapes[source])]
    ruled = match_rules(recipe, matrices)
    tensors = {}
    for name, source in sources.items():
        part, matrix = _part_of(name), name in matrices
        rule = ruled.get(name)
        weights = rule.weights if rule is not None else recipe.weights.of(part)
        storage = _storage(recipe, part, weights) if matrix else FULL_PRECISION
        kept = rule.weights.reason if rule and not storage.quantized else None
        tensors[name] = TensorPlan(name, source, tuple(shapes[source]), part, matrix, storage, kept)
    check_never(recipe, {name: tensor.storage.quantized for name, tensor in tensors.items()})
    for tensor in tensors.values():
        _check_groups(recipe, tensor, ruled.get(tensor.name))
    check_fused(recipe, {name: tensors[name].storage for name in matrices})
    return QuantizationPlan(recipe.name, recipe.kv_cache, tensors)


def _storage(recipe: Recipe, part: str, weights: WeightFormat) -> Storage:
    if part == "embedding" or recipe.algorithm == "none" or recipe.algorithm == "rtn":
        return Storage.of(weights)
    return Storage.of(weights, weights.algorithm or recipe.algorithm)


def _check_groups(recipe: Recipe, tensor: TensorPlan, rule: MatchedRule | None) -> None:
    """The layout of quantized checkpoints has no partial groups; engines that round themselves pad."""
    storage = tensor.storage
    if storage.algorithm is None or not storage.group_size or tensor.shape[1] % storage.group_size == 0:
        return
    divisors = [str(size) for size in (128, 64, 32, 16) if tensor.shape[1] % size == 0]
    where = rule.key if rule else f"weights.{tensor.part}"
    hint = f"--set {where}.group_size={divisors[0]}" if divisors else "keep it in 16 bits"
    raise UnsuitableError(
        f"recipe {recipe.name}: {tensor.name} has {tensor.shape[1]:,} inputs, which groups of "
        f"{storage.group_size} do not divide",
        hint=hint if storage.format != "nvfp4" else "keep it in 16 bits",
    )


def _is_matrix(name: str, shape: Shape) -> bool:
    # The position embedding is a table that is added, not multiplied with.
    return len(shape) == 2 and not name.endswith("position_embedding")


def _part_of(name: str) -> str:
    if name == EMBEDDING:
        return "embedding"
    if name == LM_HEAD:
        return "lm_head"
    return name.split(".", 1)[0]
