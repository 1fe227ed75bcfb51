"""The rules of a recipe for single matrices, matched against a model, and what every plan must hold."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nvlm_deploy.config.recipe import EngineName, LayerRule, Recipe
from nvlm_deploy.errors import NvlmError, did_you_mean

_EMBEDDING = "language.embed_tokens.weight"
# Matrices with one input, of which a fused one is made; each by the first of its row. Queries of
# cross-attention have another input than its keys and values.
_FUSED_WITH = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
_FUSED_IN_CROSS_ATTENTION = {"v_proj": "k_proj", "up_proj": "gate_proj"}
_CROSS = ".cross."
_FUSING_ENGINES: tuple[EngineName, ...] = ("tensorrt_llm", "vllm")
_GLOB_HINT = "patterns are globs over the names of parameters"


class Stored(Protocol):
    """A storage, as far as it matters whether two are alike."""

    @property
    def quantized(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class MatchedRule:
    """The rule that decides about a matrix. `key`: where the recipe has it, as in `--set`."""

    key: str
    weights: LayerRule


def match_rules(recipe: Recipe, matrices: Sequence[str]) -> dict[str, MatchedRule]:
    """Return the rule of every matrix that has one: of `keep`, then of `layers`, the first that matches.

    Raises:
        NvlmError: a rule matches no matrix, or none that an earlier rule has not matched.
    """
    ruled: dict[str, MatchedRule] = {}
    for number, keep in enumerate(recipe.keep):
        rule = LayerRule(match=keep.match, reason=keep.reason, format=keep.format)
        _match(recipe, "keep", MatchedRule(f"keep.{number}", rule), matrices, ruled)
    multiplied = [name for name in matrices if name != _EMBEDDING]
    for number, layer in enumerate(recipe.layers):
        _match(recipe, "layers", MatchedRule(f"layers.{number}", layer), multiplied, ruled)
    return ruled


def _match(
    recipe: Recipe, kind: str, rule: MatchedRule, matrices: Sequence[str], ruled: dict[str, MatchedRule]
) -> None:
    pattern = rule.weights.match
    matched = fnmatch.filter(matrices, pattern)
    if not matched:
        hint = did_you_mean(pattern, matrices) or _GLOB_HINT
        if fnmatch.fnmatchcase(_EMBEDDING, pattern):
            hint = "the embedding's format is weights.embedding"
        raise NvlmError(
            f"recipe {recipe.name}: the {kind} pattern '{pattern}' matches no matrix of this model", hint=hint
        )
    free = [name for name in matched if name not in ruled]
    if not free:
        raise NvlmError(
            f"recipe {recipe.name}: the {kind} pattern '{pattern}' has no effect: "
            f"'{ruled[matched[0]].weights.match}' comes before it and matches {matched[0]}, too",
            hint="the first rule that matches wins: put the special ones before the general ones",
        )
    ruled.update(dict.fromkeys(free, rule))


def check_never(recipe: Recipe, quantized: Mapping[str, bool]) -> None:
    """Hold a plan against the recipe's own `never` rules; `quantized` is by parameter.

    Raises:
        NvlmError: a rule matches no parameter, or a parameter that is quantized.
    """
    has_cross = any(_CROSS in name for name in quantized)
    for rule in recipe.never:
        if rule.only == "cross_attention" and not has_cross:
            continue
        matched = fnmatch.filter(quantized, rule.match)
        if not matched:
            raise NvlmError(
                f"recipe {recipe.name}: the never pattern '{rule.match}' matches no parameter of this model",
                hint=did_you_mean(rule.match, quantized) or _GLOB_HINT,
            )
        for name in matched:
            if quantized[name]:
                raise NvlmError(
                    f"recipe {recipe.name} quantizes {name}, which '{rule.match}' says never to: "
                    f"{rule.reason}"
                )


def check_fused(recipe: Recipe, storages: Mapping[str, Stored]) -> None:
    """Check that q, k and v, and gate and up, are stored alike where something makes one matrix of them.

    Raises:
        NvlmError: names the two matrices, and who fuses them.
    """
    for name, storage in storages.items():
        stem, _, leaf = name.removesuffix(".weight").rpartition(".")
        fused_with = _FUSED_IN_CROSS_ATTENTION if _CROSS in name else _FUSED_WITH
        if leaf not in fused_with:
            continue
        first = f"{stem}.{fused_with[leaf]}.weight"
        # In a quantized checkpoint all floats are as released.
        alike = storage == storages[first] or not (storage.quantized or storages[first].quantized)
        reason = None if alike else _fused_by(recipe, name)
        if reason is not None:
            raise NvlmError(
                f"recipe {recipe.name} stores {name} in another way than {first}, but {reason}",
                hint=f"let one rule match them all, for example '{stem}.*'",
            )


def _fused_by(recipe: Recipe, name: str) -> str | None:
    if not recipe.makes_checkpoint:
        return None
    if name.startswith("vision."):
        return "the tower's q, k and v are one tensor in the checkpoint"
    fusing = [engine for engine in recipe.engines if engine in _FUSING_ENGINES]
    return f"{' and '.join(fusing)} multiply with both as one matrix" if fusing else None
