"""A recipe resolved against one model: how each of its parameters is stored, and how large that is.

Only names and shapes are needed, so a plan for the 72B takes milliseconds.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass

from nvlm_deploy.config.manifest import PartSize
from nvlm_deploy.config.recipe import INTEGER_TYPES, ActivationType, Recipe, WeightFormat, WeightType
from nvlm_deploy.errors import NvlmError, did_you_mean

Shape = tuple[int, ...]

EMBEDDING = "language.embed_tokens.weight"
LM_HEAD = "language.lm_head.weight"
PARTS = ("vision", "projector", "language", "lm_head", "embedding")

_BITS: dict[WeightType, int] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
_SCALE_BYTES = 2
_REFERENCE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Storage:
    """How one tensor's numbers are stored; `group_size` is 0 for floats."""

    format: WeightType
    group_size: int = 0
    symmetric: bool = True
    activations: ActivationType = "fp32"

    @classmethod
    def of(cls, weights: WeightFormat) -> Storage:
        """Return the storage that a recipe's section asks for."""
        return cls(weights.format, weights.group_size or 0, weights.symmetric, weights.activations)

    @property
    def bits(self) -> int:
        """Bits per weight, without scales."""
        return _BITS[self.format]

    @property
    def quantized(self) -> bool:
        """Whether the numbers are integers with scales."""
        return self.format in INTEGER_TYPES

    def groups(self, columns: int) -> int:
        """Number of scales per row; the last group may be partial."""
        return -(-columns // self.group_size)

    def nbytes(self, shape: Shape) -> int:
        """Bytes of a tensor with scales and zero points; rows are padded to whole groups."""
        if not self.quantized:
            return math.prod(shape) * self.bits // 8
        rows, columns = shape
        groups = self.groups(columns)
        per_row = groups * (self.group_size * self.bits // 8 + _SCALE_BYTES)
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
        NvlmError: a `keep` pattern matches no matrix of the model.
    """
    sources = {name: name for name in shapes}
    sources.setdefault(LM_HEAD, EMBEDDING)
    matrices = [name for name, source in sources.items() if _is_matrix(name, shapes[source])]
    kept = _kept(recipe, matrices)
    tensors = {}
    for name, source in sources.items():
        part, matrix = _part_of(name), name in matrices
        storage = Storage.of(getattr(recipe.weights, part)) if matrix else FULL_PRECISION
        reason = None
        if name in kept:
            storage, reason = kept[name]
        tensors[name] = TensorPlan(name, source, tuple(shapes[source]), part, matrix, storage, reason)
    return QuantizationPlan(recipe.name, recipe.kv_cache, tensors)


def _kept(recipe: Recipe, matrices: list[str]) -> dict[str, tuple[Storage, str]]:
    kept: dict[str, tuple[Storage, str]] = {}
    for rule in recipe.keep:
        matched = [name for name in matrices if fnmatch.fnmatchcase(name, rule.match)]
        if not matched:
            raise NvlmError(
                f"recipe {recipe.name}: the keep pattern '{rule.match}' matches no matrix of this model",
                hint=did_you_mean(rule.match, matrices) or "patterns are globs over the names of parameters",
            )
        for name in matched:
            kept.setdefault(name, (Storage(rule.format), rule.reason))
    return kept


def _is_matrix(name: str, shape: Shape) -> bool:
    # The position embedding is a table that is added, not multiplied with.
    return len(shape) == 2 and not name.endswith("position_embedding")


def _part_of(name: str) -> str:
    if name == EMBEDDING:
        return "embedding"
    if name == LM_HEAD:
        return "lm_head"
    return name.split(".", 1)[0]
