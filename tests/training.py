"""Small checkpoints, data and configs for tests of the trainer."""

from __future__ import annotations

import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from nvlm_deploy.config.training import TrainingConfig
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import cross_style_config, released_style_config
from nvlm_deploy.train.loop import TrainingResult
from nvlm_deploy.train.run import run_training
from tests.conftest import TINY_SHAPE

SHAPE = replace(TINY_SHAPE, max_positions=1024)
SIZES = ((56, 56), (112, 56), (56, 168), (300, 200))


def write_checkpoint(variant: str, directory: Path) -> Path:
    """A random checkpoint; cross-attention, if it has any, is in the second of two layers."""
    if variant == "D":
        write_random_checkpoint(released_style_config(SHAPE), directory)
    else:
        kind: Literal["X", "H"] = "X" if variant == "X" else "H"
        write_random_checkpoint(cross_style_config(SHAPE, kind, [1]), directory)
    return directory


def write_lines(folder: Path, count: int, text_every: int = 4) -> Path:
    """`count` conversations about noise of one to seven tiles, every so many without an image; one JSONL."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    lines: list[dict[str, Any]] = []
    for number in range(count):
        line: dict[str, Any] = {"question": f"Which is {number % 5}?", "answer": f"It is {number:03}."}
        if number % text_every:
            width, height = SIZES[number % len(SIZES)]
            pixels = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((width, height)).save(folder / f"{number}.png")
            line["image"] = f"{number}.png"
        lines.append(line)
    path = folder / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def settings(checkpoint: Path, lines: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The values of a config that trains all but the tower for four steps."""
    data = {
        "max_length": 512,
        "sources": [{"kind": "jsonl", "name": "lines", "path": str(lines)}],
        **changes.pop("data", {}),
    }
    return {
        "name": "small",
        "description": "of a test",
        "model": str(checkpoint),
        "output_dir": str(output),
        "data": data,
        "freeze": ["vision"],
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_steps": 100,
        "peak_tflops": 1.0,
        **changes,
    }


def train(checkpoint: Path, lines: Path, output: Path, **changes: Any) -> TrainingResult:
    """Run such a config in this process."""
    values = settings(checkpoint, lines, output, **changes)
    return run_training(TrainingConfig.model_validate(values), lines.parent)


def trained_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """FP32 weights and moments that a checkpoint of a run holds, by name."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(checkpoint, f"{folder}/state.pt")
        state = torch.load(f"{folder}/state.pt", weights_only=True)
    flat: dict[str, torch.Tensor] = {}

    def collect(prefix: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            flat[prefix] = value
        elif isinstance(value, dict):
            for key, each in value.items():
                collect(f"{prefix}.{key}", each)

    collect("", state)
    return flat
