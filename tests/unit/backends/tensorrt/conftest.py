"""Engines of the tiny checkpoint that are "compiled" by naming their graph, on a device of host memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nvlm_deploy.backends.makers import EngineSettings
from nvlm_deploy.backends.tensorrt.engine import PartGraph, part_graphs
from nvlm_deploy.backends.tensorrt.session import PlanDecoderSession, PlanVisionSession
from nvlm_deploy.checkpoint import ModelWeights
from nvlm_deploy.config.target import load_target
from nvlm_deploy.export import write_model
from nvlm_deploy.quantization import QuantizationPlan

from ..conftest import CONTEXT, plan_for
from .host_gpu import HostDevice, HostTensorRt

Sessions = tuple[PlanVisionSession, PlanDecoderSession, HostDevice]
OpenSessions = Callable[..., Sessions]


def settings(name: str, *overrides: str, context: int = CONTEXT) -> EngineSettings:
    return EngineSettings(context, load_target(name, overrides))


def graphs(
    weights: ModelWeights, plan: QuantizationPlan, chosen: EngineSettings, library: str
) -> tuple[PartGraph, PartGraph]:
    return part_graphs(library, weights, weights.reader.config, plan, chosen)


@pytest.fixture(scope="session")
def open_sessions(weights: ModelWeights, tmp_path_factory: pytest.TempPathFactory) -> OpenSessions:
    """Opens sessions on the graphs of a target's library, FP32 unless the format says more."""

    def make(name: str, library: str, *overrides: str, **form: Any) -> Sessions:
        folder, device = tmp_path_factory.mktemp("plans"), HostDevice()
        chosen = settings(name, *overrides)
        sessions: list[Any] = []
        for graph in graphs(weights, plan_for(weights, form or {"format": "fp32"}), chosen, library):
            path = folder / f"{graph.part}.plan"
            write_model(graph.model, path.with_suffix(".onnx"))
            path.write_text(str(path.with_suffix(".onnx")))
            trt = HostTensorRt(device, tuple(ranges.profile(graph.model) for ranges in graph.ranges))
            if graph.part == "vision":
                sessions.append(PlanVisionSession(trt, path, device))
            else:
                sessions.append(PlanDecoderSession(trt, path, device))
        return sessions[0], sessions[1], device

    return make
