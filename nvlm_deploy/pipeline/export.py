"""Exports: a checkpoint in the layout of another program. What all formats have in common."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nvlm_deploy.errors import UsageError, did_you_mean
from nvlm_deploy.progress import ProgressCallback


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What a user asks for. `options` are those of the format, by name; None where none was given."""

    checkpoint: Path
    output: Path
    options: Mapping[str, Any] = field(default_factory=dict)


class ExportPlan(Protocol):
    """An export that can start; everything that can be checked beforehand is."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, and is no error."""

    def rows(self) -> Sequence[tuple[str, str]]:
        """The plan as a table."""

    def to_dict(self) -> dict[str, Any]:
        """The plan as a structure of plain types for JSON."""

    def run(self, progress: ProgressCallback) -> dict[str, Any]:
        """Write the output, whole or not at all; return what was written, for JSON."""


class Format(NamedTuple):
    """Where a format's planner is: it takes an ExportRequest and returns an ExportPlan."""

    module: str
    planner: str


_SERVING = "nvlm_deploy.pipeline.export_serving"
FORMATS = {
    "trtllm": Format("nvlm_deploy.pipeline.export_tensorrt_llm", "plan_tensorrt_llm"),
    "hf": Format(_SERVING, "plan_hf"),
    "vllm": Format(_SERVING, "plan_vllm"),
    "hf-decoder": Format(_SERVING, "plan_decoder"),
}


def plan_export(name: str, request: ExportRequest) -> ExportPlan:
    """Check a request; writes nothing.

    Raises:
        UsageError: there is no such format, a bad option, an output that exists.
        UnsuitableError: the format cannot carry the checkpoint, or the disk has too little room.
        NvlmError: the checkpoint is not in order.
    """
    if name not in FORMATS:
        raise UsageError(f"there is no export format '{name}'", hint=did_you_mean(name, FORMATS))
    planner = getattr(importlib.import_module(FORMATS[name].module), FORMATS[name].planner)
    plan: ExportPlan = planner(request)
    return plan
