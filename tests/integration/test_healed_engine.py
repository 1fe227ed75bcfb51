"""From healing to an engine: what the student computed with is what the engine computes with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nvlm_deploy.backends.protocol import SessionOptions
from nvlm_deploy.cli.main import run
from nvlm_deploy.config.training import TrainingConfig, read_training_config
from nvlm_deploy.models.nvlm import Nvlm
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.train.loop import Trainer
from nvlm_deploy.train.parallel import open_processes
from nvlm_deploy.train.plan import plan_training
from nvlm_deploy.train.run import run_training
from nvlm_deploy.verify.contract import Contract
from nvlm_deploy.verify.engine_subject import EngineSubject
from nvlm_deploy.verify.prompts import VerifyPrompt, image_prompts
from tests.training import settings, write_checkpoint, write_lines

EXAMPLE = Path(__file__).parents[2] / "examples" / "nvlm-d-tiny"
# Activations that stay in floats, so that nothing but the weights is rounded.
RECIPE = """extends: int4-rtn-g128
name: weights-alone
description: int4-rtn-g128 with activations in floats
weights:
  vision: {activations: fp32}
  projector: {activations: fp32}
  language: {activations: fp32}
  lm_head: {activations: fp32}
"""


def logits(model: Nvlm, prompt: VerifyPrompt) -> np.ndarray:
    sequence = prompt.sequence
    mask = torch.zeros(1, len(sequence), dtype=torch.bool)
    mask[0, torch.from_numpy(sequence.visual_positions)] = True
    with torch.no_grad():
        found = model(
            torch.from_numpy(sequence.input_ids)[None],
            torch.from_numpy(normalize_tiles(sequence.tiles)),
            mask,
        )
    positions: np.ndarray = found[0, torch.from_numpy(prompt.logit_positions)].numpy()
    return positions


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("lines"), 8)


def test_a_healed_students_logits_are_its_engines(tmp_path: Path, lines: Path) -> None:
    checkpoint, recipe = write_checkpoint("D", tmp_path / "model"), tmp_path / "weights-alone.yaml"
    recipe.write_text(RECIPE)
    values = settings(
        checkpoint, lines, tmp_path / "out", heal={"recipe": str(recipe)}, freeze=[], max_steps=3
    )
    plan = plan_training(TrainingConfig.model_validate(values), lines.parent)
    with open_processes() as processes:
        output = Trainer(plan, processes).run().output
    bundle = tmp_path / "engine"
    options = ["--recipe", str(recipe), "--target", "cpu-x86", "--no-verify", "-o", str(bundle)]
    assert run(["engine", str(output), *options]) == 0
    prompts = image_prompts(Contract(bundle), 2)
    engine = EngineSubject(bundle, SessionOptions(threads=1)).logits(prompts)
    for prompt, given in zip(prompts, engine, strict=True):
        trained = logits(plan.prepared.model, prompt)
        plain = np.abs(trained).max()
        # Norms and biases are in BF16 in a checkpoint, and were in FP32 while they were trained.
        assert np.abs(given - trained).max() < 5e-3 * plain


def test_divergence_of_the_example_falls_by_half(tmp_path: Path) -> None:
    """On four pages again and again, so that losses of single steps can be compared."""
    overrides = [
        f"model={EXAMPLE}",
        f"output_dir={tmp_path}",
        "data.packing=false",
        "data.sources=[{kind: documents, name: pages, split: train, with_images: true, samples: 4}]",
        "max_steps=10",
        "warmup_steps=0",
        "logging_steps=1",
        "dataloader_num_workers=0",
        "peak_tflops=1",
    ]
    config, folder = read_training_config("tiny-heal", overrides)
    run_training(config, folder)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 0 < losses[-1] < losses[0] / 2
