"""The tiny checkpoint's weights, and plans that store all of its matrices alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.checkpoint import CheckpointReader, ModelWeights
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.quantization import QuantizationPlan, resolve

MakePlan = Callable[..., QuantizationPlan]


@pytest.fixture(scope="session")
def weights(tiny_checkpoint: Path) -> ModelWeights:
    return ModelWeights(CheckpointReader(tiny_checkpoint))


@pytest.fixture(scope="session")
def make_plan(weights: ModelWeights) -> MakePlan:
    def make(**form: Any) -> QuantizationPlan:
        parts = ("vision", "projector", "language", "lm_head", "embedding")
        recipe = Recipe.model_validate(
            {
                "name": "test",
                "description": "one format for all",
                "runs_on": "tests",
                "engines": ["onnxruntime"],
                "algorithm": "rtn" if form["format"].startswith("int") else "none",
                "weights": dict.fromkeys(parts, form),
                "kv_cache": "fp32",
                "keep": [],
            }
        )
        return resolve(recipe, {name: weights.shape(name) for name in weights.names()})

    return make
