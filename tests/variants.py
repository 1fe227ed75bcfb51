"""Small NVLM-X and NVLM-H for tests of several tiers, samples for them, and a plain pass through one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from nvlm_deploy.calibration import CalibrationSample
from nvlm_deploy.models import CrossTiles, Nvlm
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import cross_style_config
from tests.conftest import TINY_SHAPE

# Eleven tiles have tags of two lengths.
SHAPE = replace(TINY_SHAPE, max_tiles=12)
# Every option is another than the default.
_OTHER: dict[str, Any] = {
    "placement": "before_layer",
    "kv_norm": "none",
    "gated_mlp": True,
    "attention_bias": True,
    "bind_tags": False,
}
KINDS: dict[str, tuple[Literal["X", "H"], dict[str, Any]]] = {
    "X": ("X", {}),
    "H": ("H", {}),
    "H-other": ("H", _OTHER),
}


def write_variant(kind: str, directory: Path) -> Path:
    """A random checkpoint with cross-attention in the second of two layers, and a few large norm channels."""
    variant, options = KINDS[kind]
    write_random_checkpoint(cross_style_config(SHAPE, variant, [1], **options), directory)
    for shard in directory.glob("*.safetensors"):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            if "norm" in name and name.endswith(".weight") and "q_norm" not in name and "k_norm" not in name:
                tensor[5] *= 20
                tensor[9] *= -0.05
        save_file(tensors, shard)
    return directory


def write_calibration(folder: Path) -> Path:
    """A set of three: eleven tiles and a thumbnail; text alone; one tile and then several."""
    generator = np.random.default_rng(3)
    for name, (width, height) in {"long": (640, 56), "wide": (160, 60), "square": (56, 56)}.items():
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    lines: list[dict[str, Any]] = [
        {"image": "long.png", "question": "What is it?", "answer": "Noise."},
        {"question": "What is 2 + 2?", "answer": "It is 4, as always."},
        {"images": ["square.png", "wide.png"], "question": "Which one is wide?", "answer": "The second."},
    ]
    return write_set(folder, lines)


def write_set(folder: Path, lines: list[dict[str, Any]]) -> Path:
    """A calibration set of these conversations."""
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = {
        "name": "small",
        "description": "of a test",
        "licence": "CC0-1.0",
        "source": {"kind": "jsonl", "path": "lines.jsonl"},
        "count": len(lines),
        "seed": 0,
        "max_tokens": 512,
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(spec))
    return folder / "small.yaml"


def logits(model: Nvlm, sample: CalibrationSample) -> Tensor:
    """The model's own forward pass over one sample, [S, V]."""
    ids = torch.from_numpy(sample.input_ids)[None]
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, torch.from_numpy(sample.visual_positions)] = True
    pixels = torch.from_numpy(normalize_tiles(sample.tiles)) if len(sample.tiles) else None
    with torch.no_grad():
        result: Tensor = model(ids, pixels, mask, tiles=CrossTiles.of([sample]))[0]
    return result
