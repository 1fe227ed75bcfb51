"""A small decoder whose heads eight GPUs can share, in every format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nvlm_deploy.checkpoint.weight_table import expected_tensors
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.pipeline.export import ExportRequest, plan_export
from nvlm_deploy.progress import no_progress
from nvlm_deploy.quantization.checkpoint import kv_scale_names
from nvlm_deploy.quantization.layout import storage_codec
from nvlm_deploy.quantization.plan import Storage
from nvlm_deploy.quantization.unified import quant_config
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import ModelShape, released_style_config

Tensors = dict[str, Tensor]
Export = Callable[..., Path]
MakeCheckpoint = Callable[[str], Path]

SHAPE = ModelShape(
    tile_size=28,
    vision_hidden=16,
    vision_intermediate=16,
    vision_layers=1,
    vision_heads=1,
    hidden=256,
    # Three groups of 128, which stand for the 231 of NVLM-D-72B: two GPUs cannot share them.
    intermediate=384,
    layers=2,
    heads=8,
    kv_heads=2,
    # No multiple of any number of GPUs.
    vocab_size=321,
    max_positions=512,
)
HEAD_DIM = 128
STORAGES = {
    "FP8": Storage("fp8", activations="fp8", algorithm="max"),
    "W4A16_AWQ": Storage("int4", 128, activations="int8", algorithm="awq"),
    "GPTQ": Storage("int4", 64, activations="int8", algorithm="gptq"),
    "W4A8_AWQ": Storage("int4", 128, activations="fp8", algorithm="awq"),
    "W8A8_SQ_PER_CHANNEL": Storage("int8", activations="int8-static", algorithm="smoothquant"),
    "NVFP4": Storage("nvfp4", 16, activations="nvfp4", algorithm="max"),
}
# Scales of inputs that no norm takes over.
SCALED = ("W4A16_AWQ", "W4A8_AWQ", "W8A8_SQ_PER_CHANNEL")
SHARING = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


def model_config() -> dict[str, Any]:
    config = released_style_config(SHAPE)
    config["llm_config"]["head_dim"] = HEAD_DIM
    return config


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with random weights, in the released layout; not to be changed."""
    directory = tmp_path_factory.mktemp("wide-heads") / "released"
    write_random_checkpoint(model_config(), directory)
    return directory


@pytest.fixture(scope="session")
def make_checkpoint(released: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Makes the checkpoint of a format, once for all tests: "16 bits", a key of `STORAGES`, with "+KV8"."""
    made = {"16 bits": released}

    def make(name: str) -> Path:
        if name not in made:
            directory = tmp_path_factory.mktemp("unified") / "checkpoint"
            algorithm, _, cache = name.partition("+")
            write_quantized(released, directory, lambda _: STORAGES[algorithm], fp8_cache=bool(cache))
            made[name] = directory
        return made[name]

    return make


@pytest.fixture
def export(tmp_path: Path) -> Iterator[Export]:
    """Exports a checkpoint with the given options."""
    numbers = iter(range(1000))

    def run(checkpoint: Path, **options: Any) -> Path:
        output = tmp_path / f"export-{next(numbers)}"
        plan_export("trtllm", ExportRequest(checkpoint, output, options)).run(no_progress)
        return output

    yield run
    for path in tmp_path.glob("export-*"):
        shutil.rmtree(path)


def read_shards(directory: Path) -> Tensors:
    tensors: Tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def write_quantized(
    released: Path, output: Path, storage_of: Callable[[str], Storage | None], fp8_cache: bool = False
) -> None:
    """Write a unified checkpoint with inputs scaled at random; `storage_of` takes a released module."""
    config = NvlmConfig.from_directory(released)
    tensors, generator = read_shards(released), torch.Generator().manual_seed(5)
    linears = {
        name.removesuffix(".weight"): Storage("fp16")
        for name, shape in expected_tensors(config).items()
        if len(shape) == 2 and name.endswith(".weight")
    }
    for layer in range(config.language.num_layers):
        for group in SHARING:
            part = "mlp" if group[0] in ("gate_proj", "down_proj") else "self_attn"
            modules = [f"language_model.model.layers.{layer}.{part}.{name}" for name in group]
            storages = {module: storage_of(module) for module in modules}
            quantized = {module: storage for module, storage in storages.items() if storage is not None}
            linears.update(quantized)
            if quantized:
                tensors.update(quantize_group(tensors, quantized, generator))
        for name in kv_scale_names(layer) if fp8_cache else ():
            tensors[name] = torch.rand((), generator=generator) * 3
    output.mkdir()
    shutil.copy(released / "config.json", output)
    unified = quant_config(linears, "fp8" if fp8_cache else "fp16")
    (output / "hf_quant_config.json").write_text(json.dumps(unified))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, output / "model.safetensors")


def quantize_group(
    tensors: Tensors, storages: dict[str, Storage], generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """Pack linears with one input: they share what engines want them to."""
    (storage,) = set(storages.values())
    codec = storage_codec(storage)
    weights = {module: tensors[f"{module}.weight"].float() for module in storages}
    amaxes = {module: codec.amax(weight) for module, weight in weights.items()}
    largest = torch.stack([amax.max() for amax in amaxes.values()]).max()
    input_scale = torch.rand((), generator=generator) / 50 + 0.005
    columns = next(iter(weights.values())).shape[1]
    pre_quant = (torch.rand(columns, generator=generator) + 0.5).bfloat16()
    for module, weight in weights.items():
        amax = amaxes[module]
        packed = codec.pack(weight, largest if not amax.dim() else amax)
        if packed.weight_scale_2 is not None:
            shared = codec.pack(weight, largest).weight_scale_2 if not amax.dim() else largest / 448
            packed = replace(packed, weight_scale_2=shared)
        yield from ((f"{module}.{suffix}", tensor.clone()) for suffix, tensor in packed.tensors().items())
        if storage.activations != "int8":
            yield f"{module}.input_scale", input_scale.clone()
        folded = len(storages) > 1 or storage.algorithm not in ("awq", "smoothquant")
        if not folded:
            yield f"{module}.pre_quant_scale", pre_quant.clone()
