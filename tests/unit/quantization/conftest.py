"""A small NVLM-D with outlier channels, samples with and without images, and its quantized checkpoints."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from nvlm_deploy.calibration import CalibrationSamples, load_samples
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.config.calibration import read_calibration_set
from nvlm_deploy.pipeline.quantize import quantize_checkpoint
from nvlm_deploy.pipeline.quantize_plan import QuantizeRequest, plan_quantize
from nvlm_deploy.preprocess import Tokenizer

Quantized = Callable[..., Path]
CALIBRATED = ("fp8", "fp8-kv8", "int4-awq", "int4-gptq", "int8-sq", "int8-wo", "nvfp4", "w4a8-awq")
VISION = (
    "fp8-vit-fp8",
    "int4-awq-vit-int4wo",
    "int4-awq-vit-int8-head8",
    "int8-sq-vit-int8",
    "w4a8-awq-vit-fp8",
)
# The widths of this model are no multiples of 128, and three of AWQ's eleven ratios are as good a test.
CHANGES = {
    "int4-awq": ("weights.language.group_size=32", "awq.alpha_step=0.5"),
    "int4-gptq": ("weights.language.group_size=32",),
    "w4a8-awq": ("weights.language.group_size=32", "awq.alpha_step=0.5"),
    "int4-awq-vit-int8-head8": ("weights.language.group_size=32", "awq.alpha_step=0.5"),
    "w4a8-awq-vit-fp8": ("weights.language.group_size=32", "awq.alpha_step=0.5"),
    "int4-awq-vit-int4wo": (
        "weights.language.group_size=32",
        "weights.vision.group_size=16",
        "weights.projector.group_size=16",
        "awq.alpha_step=0.5",
    ),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one worker do all that needs ModelOpt, whose import takes seconds, or a quantized checkpoint."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if {"modelopt", "modelopt_export", "quantized"} & set(fixtures):
            item.add_marker(pytest.mark.xdist_group("modelopt"))


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a few norm channels far larger than the others, as trained models have."""
    directory = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("outliers") / "checkpoint"))
    for shard in directory.glob("*.safetensors"):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            if "norm" in name and name.endswith(".weight") and "q_norm" not in name and "k_norm" not in name:
                tensor[5] *= 20
                tensor[9] *= -0.05
        save_file(tensors, shard)
    return directory


@pytest.fixture(scope="session")
def calibration_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of three conversations: several tiles, text alone, and two images of which one has one tile."""
    folder = tmp_path_factory.mktemp("calibration")
    generator = torch.Generator().manual_seed(3)
    for name, (width, height) in {"wide": (160, 60), "square": (56, 56)}.items():
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{name}.png")
    lines = [
        {"image": "wide.png", "question": "What is it?", "answer": "Noise."},
        {"question": "What is 2 + 2?", "answer": "It is 4, as always."},
        {"images": ["square.png", "wide.png"], "question": "Which one is wide?", "answer": "The second."},
    ]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = {
        "name": "small",
        "description": "of a test",
        "licence": "CC0-1.0",
        "source": {"kind": "jsonl", "path": "lines.jsonl"},
        "count": 3,
        "seed": 0,
        "max_tokens": 512,
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.fixture(scope="session")
def samples(checkpoint: Path, calibration_file: Path) -> CalibrationSamples:
    spec, directory = read_calibration_set(str(calibration_file))
    reader = CheckpointReader(checkpoint)
    return load_samples(spec, reader.config, Tokenizer.from_directory(checkpoint), directory)


@pytest.fixture(scope="session")
def weights(checkpoint: Path) -> ModelWeights:
    return ModelWeights(CheckpointReader(checkpoint))


@pytest.fixture(scope="session")
def modelopt() -> None:
    """Import it once: it takes seconds, and warns about versions of other packages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("modelopt.torch.quantization")


@pytest.fixture(scope="session")
def quantized(
    checkpoint: Path, calibration_file: Path, modelopt: None, tmp_path_factory: pytest.TempPathFactory
) -> Quantized:
    """Makes the quantized checkpoint of a recipe, once for all tests; it is not to be changed."""
    made: dict[tuple[str, ...], Path] = {}

    def make(recipe: str, *overrides: str) -> Path:
        key = (recipe, *overrides)
        if key not in made:
            output = tmp_path_factory.mktemp("quantized") / recipe
            changes = (*CHANGES.get(recipe, ()), *overrides)
            request = QuantizeRequest(
                checkpoint, recipe, output, calibration=str(calibration_file), overrides=changes
            )
            quantize_checkpoint(plan_quantize(request))
            made[key] = output
        return made[key]

    return make


def stored_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint as the safetensors library reads them."""
    tensors: dict[str, Tensor] = {}
    for shard in sorted(directory.glob("*.safetensors")):
        tensors.update(load_file(shard))
    return tensors
