"""Engines of tiny checkpoints, built once per format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.backends.onnxruntime.build import EngineSettings, build_engine
from nvlm_deploy.checkpoint import CheckpointReader, ModelWeights
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.models import Nvlm, load_model
from nvlm_deploy.preprocess import Tokenizer
from nvlm_deploy.preprocess.assembly import tile_tags
from nvlm_deploy.quantization import QuantizationPlan, resolve
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import ModelShape, released_style_config

CONTEXT = 96
PARTS = ("vision", "projector", "language", "lm_head", "embedding")

Form = dict[str, Any]
Build = Callable[..., Path]


def plan_for(weights: ModelWeights, form: Form, parts: dict[str, Form] | None = None) -> QuantizationPlan:
    """Store all matrices as `form` says, those of `parts` otherwise."""
    formats = {**dict.fromkeys(PARTS, form), **(parts or {})}
    quantized = any(f["format"].startswith("int") for f in formats.values())
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "description": "for tests",
            "runs_on": "tests",
            "engines": ["onnxruntime"],
            "algorithm": "rtn" if quantized else "none",
            "weights": formats,
            "kv_cache": "fp32",
            "keep": [],
        }
    )
    return resolve(recipe, {name: weights.shape(name) for name in weights.names()})


@pytest.fixture(scope="session")
def weights(tiny_checkpoint: Path) -> ModelWeights:
    return ModelWeights(CheckpointReader(tiny_checkpoint))


@pytest.fixture(scope="session")
def model(tiny_checkpoint: Path) -> Nvlm:
    return load_model(tiny_checkpoint)


@pytest.fixture(scope="session")
def build(weights: ModelWeights, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds an engine of the tiny checkpoint; the same one again is not built again."""
    built: dict[str, Path] = {}
    kept: list[ModelWeights] = []  # so that no other object gets the identity that is in a key

    def make(
        source: ModelWeights = weights,
        parts: dict[str, Form] | None = None,
        context: int = CONTEXT,
        **form: Any,
    ) -> Path:
        key = repr((id(source), sorted(form.items()), parts, context))
        if key not in built:
            kept.append(source)
            built[key] = tmp_path_factory.mktemp("engine")
            plan = plan_for(source, form, parts)
            config = source.reader.config
            tags = tile_tags(Tokenizer.from_directory(source.reader.directory), config)
            build_engine(source, config, plan, EngineSettings(context, tags=tags), built[key])
        return built[key]

    return make


@pytest.fixture(scope="session")
def make_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelWeights]:
    """Random checkpoints with other decoders: tied embeddings, or llama-style without q/k/v biases."""

    def make(shape: ModelShape, *, llama: bool = False) -> ModelWeights:
        config = released_style_config(shape)
        if llama:
            changes = {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "rope_scaling": None}
            config["llm_config"].update(changes, rope_theta=5000000.0)
        directory = tmp_path_factory.mktemp("checkpoints") / "other"
        write_random_checkpoint(config, directory)
        return ModelWeights(CheckpointReader(directory))

    return make
