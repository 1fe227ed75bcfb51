"""Stored matrices against the checkpoint's: what no activation can hide.

Shapes: R rows that are looked at, K columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from nvlm_deploy.checkpoint.model_weights import ModelWeights

_BLOCKS, _BLOCK_ROWS = 8, 32

ReadRows = Callable[[int, int], npt.NDArray[np.float32]]


class Stored(Protocol):
    """A matrix of an engine; see `backends.onnxruntime.stored`."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def read(self) -> ReadRows: ...


@dataclass(frozen=True, slots=True)
class WeightFigure:
    """Relative error of one matrix of the model: norm of the difference over the norm of what is stored."""

    name: str
    error: float


def engine_weights(reference: ModelWeights, matrices: Iterable[Stored]) -> Iterator[WeightFigure]:
    """Figures of an engine's matrices; packed q, k and v are taken apart, and unknown names passed over."""
    names = set(reference.names())
    for matrix in matrices:
        offset = 0
        for name in _parameters(matrix.name):
            if name not in names:
                continue
            rows = reference.shape(name)[0]
            yield WeightFigure(name, _error(reference, name, _shifted(matrix.read, offset)))
            offset += rows


def checkpoint_weights(
    reference: ModelWeights, stored: ModelWeights, names: Iterable[str]
) -> Iterator[WeightFigure]:
    """Figures of the named matrices of a quantized checkpoint."""
    for name in names:
        yield WeightFigure(name, _error(reference, name, _rows_of(stored, name)))


def relative_error(reference_RK: npt.NDArray[np.float32], stored_RK: npt.NDArray[np.float32]) -> float:
    """Relative error up to one factor per input feature, which may be folded into what comes before; inf if
    not finite."""
    if not np.isfinite(stored_RK).all():
        return float("inf")
    a_RK, b_RK = reference_RK.astype(np.float64), stored_RK.astype(np.float64)
    norms_K = (a_RK * a_RK).sum(axis=0)
    factors_K = (a_RK * b_RK).sum(axis=0) / np.where(norms_K == 0, 1, norms_K)
    total = float(np.linalg.norm(b_RK))
    if total == 0:
        return 0.0 if not a_RK.any() else 1.0
    return float(np.linalg.norm(b_RK - a_RK * factors_K)) / total


def _error(reference: ModelWeights, name: str, read: ReadRows) -> float:
    blocks = list(_row_blocks(reference.shape(name)[0]))
    ours = _rows_of(reference, name)
    a_RK = np.concatenate([ours(start, stop) for start, stop in blocks])
    return relative_error(a_RK, np.concatenate([read(start, stop) for start, stop in blocks]))


def _row_blocks(rows: int) -> Iterator[tuple[int, int]]:
    """Blocks of rows, spread over the matrix; all rows if there are few."""
    if rows <= _BLOCKS * _BLOCK_ROWS:
        yield 0, rows
        return
    for start in np.linspace(0, rows - _BLOCK_ROWS, _BLOCKS).astype(int).tolist():
        yield start, start + _BLOCK_ROWS


def _rows_of(weights: ModelWeights, name: str) -> ReadRows:
    def read(start: int, stop: int) -> npt.NDArray[np.float32]:
        rows: npt.NDArray[np.float32] = weights.read_rows(name, start, stop, torch.float32).numpy()
        return rows

    return read


def _shifted(read: ReadRows, offset: int) -> ReadRows:
    return lambda start, stop: read(start + offset, stop + offset)


def _parameters(node: str) -> list[str]:
    """Parameters of the model in the matrix of a node, one behind the other."""
    module = node.removesuffix(".lowered").removesuffix(".rows")
    if module.endswith(".qkv"):
        return [f"{module.removesuffix('qkv')}{kind}_proj.weight" for kind in "qkv"]
    return [f"{module}.weight"]
