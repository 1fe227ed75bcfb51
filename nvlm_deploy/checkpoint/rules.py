"""Weight rules: which tensors become which, in an ordered table that is total both ways.

A rule names its source and target tensors, with `{n}` for the layer number, and the operations in
between; no operation means copy. Sources that no rule consumes must match one of the table's drop
patterns. Anything else is an error that names the nearest candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch

from nvlm_deploy.checkpoint.operations import Operation, Tensors
from nvlm_deploy.errors import NvlmError, did_you_mean

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """`sources` become `targets` through `operations`; `{n}` stands for the layer."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operations: tuple[Operation, ...] = ()

    @property
    def name(self) -> str:
        """What errors call the rule: its first tensor."""
        return (self.sources or self.targets)[0]

    def at(self, layer: int) -> Rule:
        """The rule with the layer number filled in."""
        return replace(
            self,
            sources=tuple(name.replace("{n}", str(layer)) for name in self.sources),
            targets=tuple(name.replace("{n}", str(layer)) for name in self.targets),
        )

    def inverse(self) -> Rule:
        """The rule from targets to sources."""
        operations = tuple(operation.inverse() for operation in reversed(self.operations))
        return replace(self, sources=self.targets, targets=self.sources, operations=operations)

    def apply(self, tensors: Sequence[torch.Tensor]) -> Tensors:
        """Turn the sources, in order, into the targets, in order. Results may be views."""
        result: Tensors = tuple(tensors)
        for operation in self.operations:
            result = operation.apply(result)
        return result


class RuleTable:
    """The rules of one conversion, with all layer numbers filled in."""

    def __init__(self, rules: Iterable[Rule], drops: Sequence[str] = ()) -> None:
        self.rules = tuple(rules)
        self.drops = tuple(drops)
        self.sources = _unique(name for rule in self.rules for name in rule.sources)
        self.targets = _unique(name for rule in self.rules for name in rule.targets)

    def inverse(self) -> RuleTable:
        """The table from targets to sources. What was dropped does not come back."""
        return RuleTable(rule.inverse() for rule in self.rules)

    def is_dropped(self, source: str) -> bool:
        """Whether a drop pattern matches the source."""
        return matches_any(source, self.drops)

    def check_sources(self, found: Collection[str], where: str) -> None:
        """Raise unless `found` is every source of the table and nothing else that is not dropped.

        Raises:
            NvlmError: names `where`, the first offending tensor and the nearest candidates.
        """
        for name in found:
            if name not in self.sources and not self.is_dropped(name):
                missing = [known for known in self.sources if known not in found]
                raise NvlmError(
                    f"{where}: the tensor {name} is not part of this model",
                    hint=did_you_mean(name, missing) or did_you_mean(name, self.sources),
                )
        for name in self.sources:
            if name not in found:
                raise NvlmError(
                    f"{where}: the tensor {name} is missing",
                    hint="the checkpoint is incomplete, or its config.json belongs to another model",
                )

    def target_shapes(self, source_shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of all targets, in the order of the table, from those of the sources."""
        shapes: dict[str, Shape] = {}
        for rule in self.rules:
            sources = [torch.empty(source_shapes[name], device="meta") for name in rule.sources]
            for name, tensor in zip(rule.targets, rule.apply(sources), strict=True):
                shapes[name] = tuple(tensor.shape)
        return shapes

    def convert(self, read: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield `(target, tensor)` rule by rule; at most one rule's tensors are alive at a time."""
        for rule in self.rules:
            try:
                results = rule.apply([read(name) for name in rule.sources])
            except NvlmError as error:
                raise NvlmError(f"{rule.name}: {error.message}", hint=error.hint) from None
            yield from zip(rule.targets, results, strict=True)


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the shell-style patterns covers the whole name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _unique(names: Iterable[str]) -> dict[str, None]:
    """The names as an ordered set; a name that two rules claim is a mistake in the table."""
    unique: dict[str, None] = {}
    for name in names:
        if name in unique:
            raise ValueError(f"two rules claim {name}")
        unique[name] = None
    return unique
