"""What servers read of a unified checkpoint, from their public sources. Data, and nothing of ours.

| loader | source, read in 2026 |
|---|---|
| vllm | vllm/model_executor: layers/quantization/modelopt.py, models/{nvlm_d,intern_vit,registry}.py |
| sglang | python/sglang/srt/layers/quantization/modelopt_quant.py |
| tensorrt_llm | tensorrt_llm/_torch/model_config.py; the PyTorch path of 1.3 and newer |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from nvlm_deploy.errors import UsageError, did_you_mean

# Sizes of a linear with N outputs and K inputs; G is the group's.
Shape = tuple[str, ...]
Layout = Mapping[str, tuple[torch.dtype, Shape]]

_F32, _E4M3 = torch.float32, torch.float8_e4m3fn
TENSORS: Mapping[str, Layout] = {
    "FP8": {"weight": (_E4M3, ("N", "K")), "weight_scale": (_F32, ()), "input_scale": (_F32, ())},
    "NVFP4": {
        "weight": (torch.uint8, ("N", "K/2")),
        "weight_scale": (_E4M3, ("N", "K/16")),
        "weight_scale_2": (_F32, ()),
        "input_scale": (_F32, ()),
    },
    "W4A16_NVFP4": {
        "weight": (torch.uint8, ("N", "K/2")),
        "weight_scale": (_E4M3, ("N", "K/16")),
        "weight_scale_2": (_F32, ()),
    },
    "W4A16_AWQ": {"weight": (torch.uint8, ("N/2", "K")), "weight_scale": (_F32, ("N", "K/G"))},
    "W4A8_AWQ": {
        "weight": (torch.uint8, ("N/2", "K")),
        "weight_scale": (_F32, ("N", "K/G")),
        "weight_scale_2": (_F32, ()),
        "input_scale": (_F32, ()),
    },
}
# What inputs are multiplied with, where no norm before a linear could take it over.
PRE_QUANT_SCALE: Layout = {"pre_quant_scale": (torch.bfloat16, ("K",))}
WITH_PRE_QUANT_SCALE = ("W4A16_AWQ", "W4A8_AWQ")
# Linears that become one; each of these has one scale per tensor, so that of its parts must be the same.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
SHARED_SCALES: Mapping[str, tuple[str, ...]] = {
    "NVFP4": ("weight_scale_2", "input_scale"),
    "W4A16_NVFP4": ("weight_scale_2",),
    "W4A8_AWQ": ("weight_scale_2", "input_scale"),
}


@dataclass(frozen=True, slots=True)
class Loader:
    """One server.

    models: names in `architectures` that it has a class for. scope: the whole NVLM-D, or its decoder alone.
    algorithms: of linears. mixed: layers of several. excludes: how it takes the list of modules in 16 bits,
    as a part of a name, as a glob, or both.
    """

    name: str
    title: str
    models: tuple[str, ...]
    scope: Literal["whole", "decoder"]
    algorithms: tuple[str, ...]
    mixed: bool
    excludes: tuple[Literal["part", "glob"], ...]


_DECODERS = ("Qwen2ForCausalLM", "LlamaForCausalLM")
LOADERS: Mapping[str, Loader] = {
    loader.name: loader
    for loader in (
        Loader("vllm", "vLLM", ("NVLM_D",), "whole", ("FP8", "NVFP4", "W4A16_NVFP4"), True, ("part", "glob")),
        Loader("sglang", "SGLang", _DECODERS, "decoder", ("FP8", "NVFP4"), False, ("part",)),
        Loader(
            "tensorrt_llm",
            "TensorRT-LLM 1.3 and newer",
            _DECODERS,
            "decoder",
            ("FP8", "NVFP4", "W4A16_AWQ", "W4A8_AWQ"),
            True,
            ("glob",),
        ),
    )
}


def find_loader(name: str) -> Loader:
    """Return a loader by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in LOADERS:
        raise UsageError(f"there is no loader '{name}'", hint=did_you_mean(name, LOADERS))
    return LOADERS[name]
