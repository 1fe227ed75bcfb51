"""An assignment as a plain recipe file, which can be read, edited and rebuilt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml

from nvlm_deploy.config.recipe import EngineName, Recipe
from nvlm_deploy.config.sensitivity import SensitivityReport
from nvlm_deploy.errors import UnsuitableError, UsageError
from nvlm_deploy.quantization.plan import PARTS, Storage
from nvlm_deploy.sensitivity.assign import Assignment
from nvlm_deploy.sensitivity.budget import Budget
from nvlm_deploy.sensitivity.options import Candidate

Value = TypeVar("Value")

_MEASURES = {
    "kl": "KL: divergence of the logits from FP32's in nats, with only this layer quantized",
    "relative-error": "error: squared error of the layer's own output, relative to the output's square",
}


def recipe_text(data: Mapping[str, Any], assignment: Assignment, report: SensitivityReport) -> str:
    """Return the recipe `data` as YAML, with what was measured of every unit in comments before it."""
    prompts = report.prompts
    shown = "generated documents" if prompts.name is None else f"the set {prompts.name}"
    lines = [
        f"Written by nvlm-build auto: {assignment.choice.nbytes:,} bytes of matrices, "
        f"{assignment.nbytes:,} of weights in all.",
        "A layer without a rule has its part's format. Change any of them, and rebuild.",
        f"{_MEASURES[report.measure]},",
        f"measured on {prompts.count} prompts ({shown}, {prompts.positions} positions).",
        "",
        *_table(assignment, "KL" if report.measure == "kl" else "error"),
    ]
    comments = [f"# {line}".rstrip() for line in lines]
    return "\n".join([*comments, *_yaml_lines(data)]) + "\n"


def recipe_data(
    name: str, budget: Budget, assignment: Assignment, candidates: Sequence[Candidate]
) -> dict[str, Any]:
    """Return an assignment as the mapping of a recipe file.

    Each part has its most frequent format; units that have another one get a rule. What is not about single
    layers (embedding, KV cache, `never`) is the candidates', which must agree.

    Raises:
        UsageError: the candidates do not agree, or no engine takes them all.
    """
    recipes = [candidate.recipe for candidate in candidates]
    used = _used(assignment) or [recipes[0]]
    storages = {m: s for each in assignment.units for m, s in each.option.storages.items()}
    parts = {each.unit.name: each.unit.part for each in assignment.units}
    algorithm = _algorithm(recipes[0], storages)
    formats = {part: _common(assignment, part) for part in dict.fromkeys(parts.values())}
    weights = {}
    for part in PARTS:
        if part in formats:
            weights[part] = format_section(formats[part], algorithm)
        else:
            weights[part] = recipes[0].weights.of(part).model_dump(exclude_defaults=True)
    data: dict[str, Any] = {
        "name": name,
        "description": f"{assignment.bits:.2f} bits a weight, chosen layer by layer within {budget.text}",
        "runs_on": "what runs all of " + ", ".join(dict.fromkeys(recipe.name for recipe in used)),
        "engines": _engines(used),
        "needs_sm": max((recipe.needs_sm or 0 for recipe in used), default=0) or None,
        "algorithm": algorithm,
        **_settings(candidates),
        "weights": weights,
        "kv_cache": _same("kv_cache", [recipe.kv_cache for recipe in recipes]),
        "layers": _rules(assignment, formats, algorithm),
        "never": _never(recipes),
    }
    return {key: value for key, value in data.items() if value not in (None, [])}


def format_section(storage: Storage, algorithm: str) -> dict[str, Any]:
    """A storage as a recipe writes it, where the recipe's own algorithm is `algorithm`."""
    section: dict[str, Any] = {"format": storage.format}
    if storage.group_size and storage.format != "nvfp4":
        section["group_size"] = storage.group_size
    if not storage.symmetric:
        section["symmetric"] = False
    if storage.activations != "fp32":
        section["activations"] = storage.activations
    if storage.algorithm and storage.algorithm != algorithm:
        section["algorithm"] = storage.algorithm
    return section


def _used(assignment: Assignment) -> list[Recipe]:
    """The recipes whose formats were chosen."""
    chosen = (each.option.candidate for each in assignment.units)
    return list({candidate.recipe.name: candidate.recipe for candidate in chosen if candidate}.values())


def _algorithm(first: Recipe, storages: Mapping[str, Storage]) -> str:
    if not any(storage.quantized for storage in storages.values()):
        return "none" if not first.weights.embedding.quantized else first.algorithm
    if not first.makes_checkpoint:
        return first.algorithm
    counted = Counter(s.algorithm for s in storages.values() if s.algorithm is not None)
    return counted.most_common(1)[0][0]


def _common(assignment: Assignment, part: str) -> Storage:
    """The storage that most matrices of a part have."""
    units = [each for each in assignment.units if each.unit.part == part]
    return Counter(s for each in units for s in each.option.storages.values()).most_common(1)[0][0]


def _rules(assignment: Assignment, formats: Mapping[str, Storage], algorithm: str) -> list[dict[str, Any]]:
    rules = []
    for each in assignment.units:
        common = formats[each.unit.part]
        other = {matrix: s for matrix, s in each.option.storages.items() if s != common}
        whole = len(other) == len(each.unit.matrices) and len(set(other.values())) == 1
        patterns = {each.unit.pattern: next(iter(other.values()))} if whole else other
        for pattern, storage in patterns.items():
            section = format_section(storage, algorithm)
            rules.append(
                {"match": pattern, **section, "reason": f"{each.option.label} loses {each.loss:.1e}"}
            )
    return rules


def _engines(used: Sequence[Recipe]) -> list[EngineName]:
    engines = [engine for engine in used[0].engines if all(engine in recipe.engines for recipe in used)]
    if not engines:
        names = " and ".join(recipe.name for recipe in used)
        raise UnsuitableError(f"no engine takes both {names}", hint="leave one of the formats away")
    return engines


def _settings(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """How the algorithms search: the recipes that use one must agree on it."""
    settings = {}
    for name in ("awq", "smoothquant", "gptq"):
        users = [
            getattr(candidate.recipe, name)
            for candidate in candidates
            if any(tensor.storage.algorithm == name for tensor in candidate.plan.tensors.values())
        ]
        if users:
            settings[name] = _same(name, users).model_dump(exclude_defaults=True)
    return {name: changed for name, changed in settings.items() if changed}


def _same(key: str, values: Sequence[Value]) -> Value:
    if any(value != values[0] for value in values):
        raise UsageError(
            f"the formats' recipes do not agree on {key}", hint=f"give them one {key}: --set RECIPE.{key}=..."
        )
    return values[0]


def _never(recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    rules = {rule.match: rule for recipe in recipes for rule in recipe.never}
    return [rule.model_dump(exclude_none=True) for rule in rules.values()]


def _table(assignment: Assignment, head: str) -> list[str]:
    rows = [(each.unit.name, each.option.label, each.bits, each.loss) for each in assignment.units]
    rows.append(("all", "", assignment.bits, assignment.choice.loss))
    names, labels = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    lines = [f"{'layer':<{names}}  {'stored as':<{labels}}  bits  {head:>7}"]
    return lines + [
        f"{n:<{names}}  {label:<{labels}}  {bits:4.2f}  {loss:.1e}" for n, label, bits, loss in rows
    ]


def _yaml_lines(data: Mapping[str, Any]) -> list[str]:
    """One line for every value, section and rule."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {name}: {_flow(below)}" for name, below in value.items()]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{key}:")
            lines += [f"  - {_flow(below)}" for below in value]
        else:
            lines.append(f"{key}: {_flow(value)}")
    return lines


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=2**16, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
