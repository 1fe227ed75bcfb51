"""Makers of engines: one small protocol, and the module that implements it for each backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.target import Target
from nvlm_deploy.errors import UsageError, did_you_mean
from nvlm_deploy.quantization.plan import QuantizationPlan

# Called after every piece: the part ("vision" or "llm"), what is being made, bytes written, bytes in all.
BuildProgress = Callable[[str, str, int, int], None]
# Tiles of the calibration set, uint8 [T, I, I, 3], for what a maker measures before it writes.
Tiles = Callable[[], NDArray[np.uint8]]

_MAKERS = {
    "onnxruntime": "nvlm_deploy.backends.onnxruntime.build",
    "tensorrt": "nvlm_deploy.backends.tensorrt.build",
    "tensorrt_llm": "nvlm_deploy.backends.tensorrt_llm.build",
    "tensorrt_rtx": "nvlm_deploy.backends.tensorrt_rtx.build",
}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the target decides.

    context_length: tokens of prompt and answer together. target: None for any machine. tiles: for makers
    that compute in 16 bits and measure where that is too little; without it they do not measure. record: JSON
    that graphs are to say of themselves; see `GraphFacts`. tags: see `preprocess.assembly.tile_tags`.
    """

    context_length: int
    target: Target | None = None
    tiles: Tiles | None = None
    record: Mapping[str, Any] | None = None
    tags: tuple[tuple[int, ...], ...] = ()


class EngineMaker(Protocol):
    """The module of a backend that makes engines."""

    def adapt(self, plan: QuantizationPlan) -> QuantizationPlan:
        """Return `plan` in storages that the backend takes; the numbers are the same."""

    def check(self, config: NvlmConfig, plan: QuantizationPlan, settings: EngineSettings) -> None:
        """Find out before the first second of work what the backend cannot do.

        Raises:
            UnsuitableError: names what is asked for and what there is.
        """

    def files(self, config: NvlmConfig) -> tuple[str, ...]:
        """Paths of the files that `build_engine` leaves."""

    def disk_bytes(self, plan: QuantizationPlan) -> int:
        """Bytes that the files take at most while they are made."""

    def tools(self) -> Mapping[str, str]:
        """Versions of what engines are made with, beside what all bundles need."""

    def build_engine(
        self,
        weights: ModelWeights,
        config: NvlmConfig,
        plan: QuantizationPlan,
        settings: EngineSettings,
        output: Path,
        progress: BuildProgress | None = None,
    ) -> dict[str, Any]:
        """Write `vision/` and `llm/` below `output`; return the manifest's sections of these names."""


def engine_maker(backend: str) -> EngineMaker:
    """Return the module that makes engines for `backend`.

    Raises:
        UsageError: there is none.
    """
    if backend not in _MAKERS:
        raise UsageError(f"there is no maker of engines '{backend}'", hint=did_you_mean(backend, _MAKERS))
    return cast(EngineMaker, importlib.import_module(_MAKERS[backend]))
