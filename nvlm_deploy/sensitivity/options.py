"""Units of the model, and the ways to store each one that the candidate recipes have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.recipe import STATIC_ACTIVATIONS, Recipe
from nvlm_deploy.config.sensitivity import RELEASED, Granularity
from nvlm_deploy.quantization.groups import LinearGroup, all_groups
from nvlm_deploy.quantization.plan import QuantizationPlan, Storage

_FLOAT = Storage("fp16")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recipe and what it does to the model."""

    recipe: Recipe
    plan: QuantizationPlan


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a unit: storage by matrix. `candidate` is None for 16 bits, as released."""

    label: str
    candidate: Candidate | None
    storages: Mapping[str, Storage]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Unit:
    """Matrices that get a format together. `step`: whose they are; `pattern`: the glob that matches them."""

    name: str
    step: str
    pattern: str
    part: str
    matrices: tuple[str, ...]
    weights: int
    options: tuple[Option, ...]


def model_units(
    config: NvlmConfig, candidates: Sequence[Candidate], by: Granularity = "layer"
) -> tuple[Unit, ...]:
    """Return the units in the order of computation; the first option of each is 16 bits.

    A tied `lm_head` is no unit: it is the embedding.

    Args:
        by: "layer": layers, the projector and `lm_head`; "group": each group of their linears with one input.
    """
    members: dict[_Name, list[str]] = {}
    for group in all_groups(config):
        name = _group_name(group) if by == "group" else _step_name(group)
        members.setdefault(name, []).extend(group.weights)
    tied = candidates[0].plan.tied
    return tuple(
        _unit(name, tuple(matrices), candidates)
        for name, matrices in members.items()
        if not (tied and name.step == "language.lm_head")
    )


@dataclass(frozen=True, slots=True)
class _Name:
    name: str
    step: str
    pattern: str


def _step_name(group: LinearGroup) -> _Name:
    pieces = group.linears[0].split(".")
    layered = pieces[1] == "layers"
    step = ".".join(pieces[:3]) if layered else pieces[0] if pieces[0] == "projector" else group.linears[0]
    return _Name(step, step, f"{step}.*")


def _group_name(group: LinearGroup) -> _Name:
    step = _step_name(group).step
    if len(group.linears) == 1:
        return _Name(group.linears[0], step, f"{group.linears[0]}.*")
    stem = group.linears[0].rpartition(".")[0]
    kinds = [linear.rpartition(".")[2].removesuffix("_proj") for linear in group.linears]
    initials = "".join(kind[0] for kind in kinds)
    return _Name(f"{stem}.{'/'.join(kinds)}", step, f"{stem}.[{initials}]*_proj.*")


def storage_label(storage: Storage) -> str:
    """A storage in a few words: `int4 g128 awq`, `int8 smoothquant a8`."""
    words: list[str] = [storage.format]
    if storage.group_size and storage.format in ("int4", "int8"):
        words.append(f"g{storage.group_size}")
    words.append(storage.algorithm or "rtn")
    if storage.activations in STATIC_ACTIVATIONS:
        words.append("a4" if storage.activations == "nvfp4" else "a8")
    return " ".join(words)


def option_of(unit: Unit, candidate: Candidate) -> Option:
    """The option that a candidate's recipe is for a unit."""
    wanted = _key({matrix: candidate.plan.storage(matrix) for matrix in unit.matrices})
    return next(option for option in unit.options if _key(option.storages) == wanted)


def _unit(name: _Name, matrices: tuple[str, ...], candidates: Sequence[Candidate]) -> Unit:
    shapes = candidates[0].plan.tensors
    weights = sum(shapes[matrix].shape[0] * shapes[matrix].shape[1] for matrix in matrices)
    options = [Option(RELEASED, None, dict.fromkeys(matrices, _FLOAT), 2 * weights)]
    known = set()
    for candidate in candidates:
        storages = {matrix: candidate.plan.storage(matrix) for matrix in matrices}
        key = _key(storages)
        if key in known or not any(storage.quantized for storage in storages.values()):
            continue
        known.add(key)
        nbytes = sum(storage.nbytes(shapes[matrix].shape) for matrix, storage in storages.items())
        label = _option_label(storages.values(), candidate, options)
        options.append(Option(label, candidate, storages, nbytes))
    part = shapes[matrices[0]].part
    return Unit(name.name, name.step, name.pattern, part, matrices, weights, tuple(options))


def _key(storages: Mapping[str, Storage]) -> tuple[Storage, ...]:
    return tuple(_comparable(storage) for storage in storages.values())


def _comparable(storage: Storage) -> Storage:
    """What makes a difference: all floats are as released, and activations without a scale stay floats."""
    if not storage.quantized:
        return _FLOAT
    dynamic = storage.activations not in STATIC_ACTIVATIONS
    return replace(storage, activations="fp32") if dynamic else storage


def _option_label(storages: Iterable[Storage], candidate: Candidate, others: Sequence[Option]) -> str:
    labels = Counter(storage_label(storage) for storage in storages if storage.quantized)
    floats = any(not storage.quantized for storage in storages)
    label = labels.most_common(1)[0][0]
    taken = any(option.label == label for option in others)
    return f"{label} ({candidate.recipe.name})" if len(labels) > 1 or floats or taken else label
