"""A quantized step as tensors under the released names: packed weights, scales, and folded norms.

The tower's q, k and v are one tensor on disk, with dummy heads behind the real ones: weights go into that
form first and are packed there, so that every reader of the released layout finds what it expects.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nvlm_deploy.checkpoint.rules import Rule
from nvlm_deploy.checkpoint.weight_table import model_table
from nvlm_deploy.quantization.formats import PackedWeight
from nvlm_deploy.quantization.groups import LinearGroup
from nvlm_deploy.quantization.layout import per_column, per_group, storage_codec
from nvlm_deploy.quantization.search import GroupScales, ScaleSearch

Scaled = Mapping[LinearGroup, GroupScales]


def released_step(
    search: ScaleSearch, parameters: Collection[str], scaled: Scaled
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors on disk that are made of `parameters`, in the order of the weight table."""
    reader = search.weights.reader
    by_linear = {name: scales for group, scales in scaled.items() for name in group.linears}
    folded = {group.norm: scales for group, scales in scaled.items() if scales.folds}
    for rule in model_table(reader.config).rules:
        if not parameters or not set(rule.targets) <= set(parameters):
            continue
        (name,) = rule.sources
        linears = [target.removesuffix(".weight") for target in rule.targets]
        norm = rule.targets[0].rpartition(".")[0]
        if search.storages[rule.targets[0]].quantized:
            yield from _quantized(search, name, rule.inverse(), linears, by_linear[linears[0]])
        elif norm in folded:
            tensor = reader.read(name)
            scale_K = folded[norm].scale_K
            assert scale_K is not None
            yield name, (tensor.float() * scale_K.to(tensor.device)).to(tensor.dtype)
        else:
            yield name, reader.read(name)


def _quantized(
    search: ScaleSearch, name: str, to_disk: Rule, linears: list[str], scales: GroupScales
) -> Iterator[tuple[str, Tensor]]:
    storage = search.storages[f"{linears[0]}.weight"]
    codec = storage_codec(storage)
    (weight_NK,) = to_disk.apply([search.weight(linear, scales) for linear in linears])
    amaxes = [scales.amax[linear] for linear in linears]
    amax = amaxes[0] if not amaxes[0].dim() else per_group(to_disk, storage.group_size).apply(amaxes)[0]
    packed: PackedWeight = codec.pack(weight_NK, amax)
    if scales.scale_2 is not None:
        packed = replace(packed, weight_scale_2=scales.scale_2.clone())
    stem = name.removesuffix("weight")
    yield from ((stem + suffix, tensor) for suffix, tensor in packed.tensors().items())
    if scales.input_scale is not None:
        # A copy: the group shares one tensor, and a file has one for each.
        yield stem + "input_scale", scales.input_scale.clone()
    if scales.scale_K is not None and not scales.folds:
        padded = per_column(to_disk).apply([scales.scale_K.unsqueeze(0)])[0].squeeze(0)
        # The channels of dummy heads have the scale 1.
        yield stem + "pre_quant_scale", torch.where(padded == 0, 1, padded).to(torch.bfloat16)
