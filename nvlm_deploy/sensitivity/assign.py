"""From measured losses and a budget to an assignment: which format each unit gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvlm_deploy.config.sensitivity import OptionLoss, SensitivityReport, UnitLoss
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.sensitivity.budget import Budget
from nvlm_deploy.sensitivity.knapsack import Choice, Item, choose
from nvlm_deploy.sensitivity.options import Candidate, Option, Unit, option_of


@dataclass(frozen=True, slots=True)
class Assigned:
    """One unit with its chosen option, and what was measured of it."""

    unit: Unit
    option: Option
    measured: OptionLoss

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.option.nbytes / self.unit.weights

    @property
    def loss(self) -> float:
        assert self.measured.loss is not None, "only finite losses are chosen"
        return self.measured.loss


@dataclass(frozen=True, slots=True)
class Assignment:
    """The chosen option of every unit. nbytes: of the whole model; matrices: of the units alone."""

    units: tuple[Assigned, ...]
    choice: Choice
    nbytes: int

    @property
    def bits(self) -> float:
        """Mean bits per weight of the units' matrices."""
        return 8 * self.choice.nbytes / sum(each.unit.weights for each in self.units)


def assign(
    report: SensitivityReport, units: Sequence[Unit], candidates: Sequence[Candidate], budget: Budget
) -> Assignment:
    """Choose the options with the least sum of losses that fit into the budget.

    Raises:
        UnsuitableError: the budget is too small for any choice.
        NvlmError: the report is about other units or options.
    """
    measured = _matched(report, units)
    fixed = fixed_bytes(units, candidates[0])
    usable = [[o for o in unit.options if o.loss is not None] for unit in measured]
    items = [[Item(option.nbytes, option.loss or 0.0) for option in options] for options in usable]
    left = budget.left(sum(unit.weights for unit in units), fixed)
    choice = choose(items, left)
    assigned = []
    for unit, options, picked in zip(units, usable, choice.options, strict=True):
        (option,) = [each for each in unit.options if each.label == options[picked].label]
        assigned.append(Assigned(unit, option, options[picked]))
    return Assignment(tuple(assigned), choice, fixed + choice.nbytes)


def fixed_bytes(units: Sequence[Unit], candidate: Candidate) -> int:
    """Bytes of everything that is not chosen: embedding, norms, biases, convolution."""
    chosen = {matrix for unit in units for matrix in unit.matrices}
    return sum(candidate.plan.stored_bytes(name) for name in candidate.plan.tensors if name not in chosen)


def uniform(report: SensitivityReport, units: Sequence[Unit], candidate: Candidate) -> tuple[float, float]:
    """Mean bits per weight of a candidate's own recipe, and the sum of its losses (infinite if one is)."""
    options = [option_of(unit, candidate) for unit in units]
    losses = [
        _option(measured, option).loss
        for measured, option in zip(_matched(report, units), options, strict=True)
    ]
    bits = 8 * sum(option.nbytes for option in options) / sum(unit.weights for unit in units)
    return bits, sum(float("inf") if loss is None else loss for loss in losses)


def _matched(report: SensitivityReport, units: Sequence[Unit]) -> list[UnitLoss]:
    """The report's units, which must be those of the model with the same options."""
    described = [(unit.name, [(o.label, o.nbytes) for o in unit.options]) for unit in units]
    if described != [(unit.name, [(o.label, o.nbytes) for o in unit.options]) for unit in report.units]:
        raise NvlmError(
            "the report's layers and formats are not those of this model and its recipes",
            hint="measure again: nvlm-build sensitivity",
        )
    return list(report.units)


def _option(unit: UnitLoss, option: Option) -> OptionLoss:
    found = unit.option(option.label)
    assert found is not None, "units are matched with the report's"
    return found
