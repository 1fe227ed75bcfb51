"""What a checkpoint holds: tensors, parameters and bytes, from its config alone or as it is on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.checkpoint.rules import Shape
from nvlm_deploy.checkpoint.safetensors_file import DTYPE_NAMES
from nvlm_deploy.checkpoint.weight_table import model_shapes, released_tensors
from nvlm_deploy.config.model import NvlmConfig

_PARTS = {"vision_model": "vision", "mlp1": "projector", "language_model": "language"}


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """One tensor on disk; `dtype` as safetensors spells it, `shard` None if only a config was read."""

    name: str
    shape: Shape
    dtype: str
    part: str
    parameters: int
    bytes: int
    shard: str | None


@dataclass(frozen=True, slots=True)
class PartSummary:
    """Sums over vision, projector, language, or all. `model_parameters` leaves dummy heads out."""

    tensors: int
    parameters: int
    model_parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """All tensors in canonical order, sums by part, and the total."""

    tensors: tuple[TensorSummary, ...]
    parts: dict[str, PartSummary]
    total: PartSummary

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        return asdict(self)


def summarize(source: NvlmConfig | CheckpointReader) -> CheckpointSummary:
    """Summarize what a config promises in the released dtypes, or what a checkpoint has on disk."""
    rows: list[tuple[str, Shape, torch.dtype, str | None]]
    if isinstance(source, CheckpointReader):
        infos = [source.info(name) for name in source.names()]
        rows = [(info.name, info.shape, info.dtype, info.shard) for info in infos]
        config = source.config
    else:
        rows = [(tensor.name, tensor.shape, tensor.dtype, None) for tensor in released_tensors(source)]
        config = source
    tensors = tuple(
        TensorSummary(
            name=name,
            shape=shape,
            dtype=DTYPE_NAMES[dtype],
            part=_PARTS[name.partition(".")[0]],
            parameters=math.prod(shape),
            bytes=math.prod(shape) * dtype.itemsize,
            shard=shard,
        )
        for name, shape, dtype, shard in rows
    )
    parts = _sum_parts(tensors, model_shapes(config))
    return CheckpointSummary(tensors, parts, _add(parts))


def _sum_parts(tensors: tuple[TensorSummary, ...], shapes: Mapping[str, Shape]) -> dict[str, PartSummary]:
    parts = {}
    for part in _PARTS.values():
        members = [tensor for tensor in tensors if tensor.part == part]
        parts[part] = PartSummary(
            tensors=len(members),
            parameters=sum(tensor.parameters for tensor in members),
            model_parameters=sum(
                math.prod(shape) for name, shape in shapes.items() if name.startswith(part + ".")
            ),
            bytes=sum(tensor.bytes for tensor in members),
        )
    return parts


def _add(parts: Mapping[str, PartSummary]) -> PartSummary:
    return PartSummary(
        tensors=sum(part.tensors for part in parts.values()),
        parameters=sum(part.parameters for part in parts.values()),
        model_parameters=sum(part.model_parameters for part in parts.values()),
        bytes=sum(part.bytes for part in parts.values()),
    )
