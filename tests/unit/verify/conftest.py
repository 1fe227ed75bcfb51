"""Engines of the tiny random checkpoint, and what the PyTorch model makes of a few prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nvlm_deploy.checkpoint import CheckpointReader, ModelWeights
from nvlm_deploy.pipeline.engine import build_engine_bundle
from nvlm_deploy.pipeline.plan import BuildRequest, plan_engine
from nvlm_deploy.quantization.streamed_model import StreamedModel
from nvlm_deploy.verify.contract import Contract
from nvlm_deploy.verify.measure import PromptSet
from nvlm_deploy.verify.walk import ModelWalk, WalkResult


def build(checkpoint: Path, output: Path, recipe: str, *changes: str) -> Path:
    """Build an engine, and do not verify it."""
    request = BuildRequest(checkpoint, recipe, "cpu-x86", output, changes)
    return build_engine_bundle(plan_engine(request)).bundle


@pytest.fixture(scope="session")
def weights(tiny_checkpoint: Path) -> ModelWeights:
    return ModelWeights(CheckpointReader(tiny_checkpoint))


@pytest.fixture(scope="session")
def contract(tiny_checkpoint: Path) -> Contract:
    return Contract(tiny_checkpoint)


@pytest.fixture(scope="session")
def prompts(contract: Contract) -> PromptSet:
    """The smallest set: a page of every kind, two texts, two exchanges of tags."""
    return PromptSet.make(contract, 5)


@pytest.fixture(scope="session")
def reference(weights: ModelWeights, prompts: PromptSet) -> WalkResult:
    """The streamed model on the prompts."""
    model = StreamedModel(weights, torch.device("cpu"))
    return ModelWalk(model).run(prompts.all, frozenset(prompts.probed))


@pytest.fixture(scope="session")
def fp32_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The FP32 engine; not to be changed."""
    return build(tiny_checkpoint, tmp_path_factory.mktemp("fp32") / "bundle", "fp32")


@pytest.fixture(scope="session")
def int4_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT4 engine whose decoder has zero points; not to be changed."""
    output = tmp_path_factory.mktemp("int4") / "bundle"
    return build(tiny_checkpoint, output, "int4-rtn", "weights.language.symmetric=false")
