"""Linears as a quantized checkpoint would have them, made in memory.

The numbers are those that `nvlm-build quantize` writes and `models.quantized` reads back: the same search,
the same codec. A scale that is folded into a norm on disk is multiplied with the inputs here, which is the
same product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from nvlm_deploy.models.quantized import QuantizedLinear, input_quantizer
from nvlm_deploy.quantization import rtn
from nvlm_deploy.quantization.groups import LinearGroup
from nvlm_deploy.quantization.layout import storage_codec
from nvlm_deploy.quantization.observe import Observed
from nvlm_deploy.quantization.plan import Storage
from nvlm_deploy.quantization.search import GroupScales, ScaleSearch

Linears = Mapping[str, nn.Module]


def quantized_linears(
    search: ScaleSearch, groups: Sequence[LinearGroup], seen: Mapping[str, Observed]
) -> dict[str, nn.Module]:
    """Return the quantized linears of `groups`, by name; linears in floats are not among them.

    Args:
        seen: inputs of the groups by their first linear; empty if nothing is calibrated.
    """
    linears: dict[str, nn.Module] = {}
    for group in groups:
        for part in search.parts(group):
            # Round-to-nearest has no scales to search.
            searched = search.storages[part.weights[0]].algorithm is not None
            scales = search.search(part, seen.get(group.linears[0])) if searched else GroupScales()
            linears.update((name, _quantized_linear(search, name, scales)) for name in part.linears)
    return linears


@contextmanager
def replaced(model: nn.Module, linears: Linears) -> Iterator[None]:
    """Compute with `linears` in the place of the model's own inside the block."""
    own = {name: model.get_submodule(name) for name in linears}
    try:
        install(model, linears)
        yield
    finally:
        install(model, own)


def install(model: nn.Module, linears: Linears) -> None:
    """Put modules into their places in `model`."""
    for name, linear in linears.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, linear)


def _quantized_linear(search: ScaleSearch, name: str, scales: GroupScales) -> QuantizedLinear:
    storage = search.storages[f"{name}.weight"]
    weight_NK = _round_trip(search.weight(name, scales), storage, name, scales)
    bias, weights = f"{name}.bias", search.weights
    bias_N = weights.read(bias, torch.float32).to(search.device) if bias in weights.names() else None
    quantize_input = input_quantizer(storage.activations, scales.input_scale)
    return QuantizedLinear(weight_NK, bias_N, scales.scale_K, quantize_input)


def _round_trip(weight_NK: Tensor, storage: Storage, name: str, scales: GroupScales) -> Tensor:
    """The weight as its codes stand for it, float32 [N, K]."""
    if storage.algorithm is None:
        matrix = rtn.quantize(
            weight_NK.cpu().numpy(),
            bits=storage.bits,
            group_size=storage.group_size,
            symmetric=storage.symmetric,
        )
        return torch.from_numpy(rtn.dequantize(matrix, weight_NK.shape[1])).to(weight_NK.device)
    codec = storage_codec(storage)
    packed = codec.pack(weight_NK, scales.amax[name])
    if scales.scale_2 is not None:
        packed = replace(packed, weight_scale_2=scales.scale_2)
    return codec.unpack(packed)
