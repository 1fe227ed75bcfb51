"""A quantized step as tensors under the released names: packed weights, scales, and folded norms.

The tower's q, k and v are one tensor on disk, with dummy heads behind the real ones: weights go into that
form first and are packed there, so that every reader of the released layout finds what it expects.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from nvlm_deploy.checkpoint.rules import Rule
from nvlm_deploy.checkpoint.weight_table import model_table
from nvlm_deploy.quantization.formats import PackedWeight
from nvlm_deploy.quantization.groups import LinearGroup
from nvlm_deploy.quantization.layout import per_column, per_group, storage_codec
from nvlm_deploy.quantization.search import GroupScales, ScaleSearch


def released_part(
    search: ScaleSearch, part: LinearGroup, scales: GroupScales
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors on disk of quantized linears that were searched together, and of the norm before.

    The norm is there only if it takes over a scale.
    """
    for rule in _rules_of(search, part.weights):
        linears = [target.removesuffix(".weight") for target in rule.targets]
        yield from _quantized(search, rule.sources[0], rule.inverse(), linears, scales)
    for rule in _rules_of(search, folded_parameters(part, scales)):
        (name,) = rule.sources
        tensor = search.weights.reader.read(name)
        assert scales.scale_K is not None
        yield name, (tensor.float() * scales.scale_K.to(tensor.device)).to(tensor.dtype)


def folded_parameters(part: LinearGroup, scales: GroupScales) -> tuple[str, ...]:
    """The parameters of the norm that takes over a scale, by the names that norms may have."""
    return (f"{part.norm}.weight", f"{part.norm}.bias") if scales.folds else ()


def released_rest(search: ScaleSearch, parameters: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors on disk of parameters that stay as they are."""
    for rule in _rules_of(search, parameters):
        (name,) = rule.sources
        yield name, search.weights.reader.read(name)


def _rules_of(search: ScaleSearch, parameters: Collection[str]) -> list[Rule]:
    wanted = set(parameters)
    rules = [rule for rule in model_table(search.weights.reader.config).rules if wanted & set(rule.targets)]
    # The plan keeps parameters together that are one tensor on disk.
    assert all(set(rule.targets) <= wanted for rule in rules)
    return rules


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
