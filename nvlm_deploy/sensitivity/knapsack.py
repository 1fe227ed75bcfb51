"""Choose one option for every unit: the least loss that fits into a size (the multiple-choice knapsack).

Exact dynamic programming over the choices that no other one beats in size and in loss (Nemhauser and
Ullmann 1969). A choice is dropped when, by the bound of the linear relaxation (Sinha and Zoltners 1979), it
cannot lead to less loss than a greedy answer. If too many are left, the least promising are given up, and
the result says how far from the best it may be.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_deploy.errors import UnsuitableError

# Choices that are kept at once; a model of 126 units takes less than 100 MB with them.
MAX_STATES = 20_000

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Item:
    """One option of a unit: its size in bytes, and what is lost by it."""

    nbytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen option of every unit, by its index. No choice that fits loses less than `lower_bound`."""

    options: tuple[int, ...]
    nbytes: int
    loss: float
    lower_bound: float

    @property
    def exact(self) -> bool:
        """Whether there is no better choice."""
        return self.lower_bound >= self.loss


@dataclass(frozen=True, slots=True)
class _Relaxation:
    """The linear relaxation of some units: the least loss by size, piecewise linear and convex."""

    nbytes: Floats
    loss: Floats

    def bound(self, sizes: Integers) -> Floats:
        """The least loss within each of `sizes`; infinite where the units do not fit."""
        bound: Floats = np.interp(sizes, self.nbytes, self.loss, left=np.inf)
        return bound


@dataclass(frozen=True, slots=True)
class _States:
    """Choices for the first units, by size: sizes, losses, and by which choice and option each came to be."""

    nbytes: Integers
    loss: Floats
    parent: Integers
    option: Integers

    def __getitem__(self, rows: npt.NDArray[np.intp]) -> _States:
        return _States(self.nbytes[rows], self.loss[rows], self.parent[rows], self.option[rows])


@dataclass(frozen=True, slots=True)
class _Step:
    """A step from one option on a unit's convex hull to the next larger one, and what a byte of it saves."""

    unit: int
    option: int
    nbytes: int
    loss: float

    @property
    def gain(self) -> float:
        return -self.loss / self.nbytes


def choose(units: Sequence[Sequence[Item]], budget: int, max_states: int = MAX_STATES) -> Choice:
    """Choose an option for every unit, so that their sizes sum up to no more than `budget` bytes.

    Losses are at least zero, and are added.

    Raises:
        UnsuitableError: the smallest options together are larger than the budget.
    """
    smallest = sum(min(item.nbytes for item in items) for items in units)
    if smallest > budget:
        raise UnsuitableError(
            f"the smallest formats that were measured take {smallest:,} bytes, and {budget:,} are left",
            hint="raise the budget, or measure smaller formats, too",
        )
    hulls = [_hull(items) for items in units]
    steps = _steps(units, hulls)
    at_hand = _greedy(units, hulls, steps, budget)
    limit = sum(items[option].loss for items, option in zip(units, at_hand, strict=True))
    states, given_up = _search(units, hulls, steps, budget, limit, max_states)
    found = _walk_back(states) if len(states[-1].loss) else at_hand
    picked = [items[option] for items, option in zip(units, found, strict=True)]
    loss = sum(item.loss for item in picked)
    return Choice(tuple(found), sum(item.nbytes for item in picked), loss, min(loss, given_up))


def _search(
    units: Sequence[Sequence[Item]],
    hulls: Sequence[Sequence[int]],
    steps: Sequence[_Step],
    budget: int,
    limit: float,
    max_states: int,
) -> tuple[list[_States], float]:
    """Return the states after every unit that may lead below `limit`, and the bound of those given up."""
    nothing = np.zeros(1, np.int64)
    states = [_States(nothing, np.zeros(1), nothing, nothing)]
    given_up = np.inf
    for number, items in enumerate(units):
        rest = _relax(units, hulls, steps, number + 1)
        grown = _undominated(_grow(states[-1], items))
        # Rounding of the bound must not drop what is better by less than it.
        promise = (grown.loss + rest.bound(budget - grown.nbytes)) * (1 - 1e-12)
        alive = promise < limit
        if alive.sum() > max_states:
            worst = np.partition(promise[alive], max_states)[max_states]
            given_up = min(given_up, float(worst))
            alive &= promise < worst
        states.append(grown[np.flatnonzero(alive)])
    return states, given_up


def _hull(items: Sequence[Item]) -> list[int]:
    """Indices of the options on the lower convex hull, from the smallest to the one that loses least."""
    order = sorted(range(len(items)), key=lambda i: (items[i].nbytes, items[i].loss))
    hull: list[int] = []
    for i in order:
        if hull and items[i].loss >= items[hull[-1]].loss:
            continue
        while len(hull) > 1 and _step(0, items, *hull[-2:]).gain <= _step(0, items, hull[-1], i).gain:
            hull.pop()
        hull.append(i)
    return hull


def _step(unit: int, items: Sequence[Item], small: int, large: int) -> _Step:
    a, b = items[small], items[large]
    return _Step(unit, large, b.nbytes - a.nbytes, b.loss - a.loss)


def _steps(units: Sequence[Sequence[Item]], hulls: Sequence[Sequence[int]]) -> list[_Step]:
    """All steps on all hulls, the most worthwhile first; those of a unit stay in their order."""
    steps = [
        _step(number, items, small, large)
        for number, (items, hull) in enumerate(zip(units, hulls, strict=True))
        for small, large in itertools.pairwise(hull)
    ]
    return sorted(steps, key=lambda step: -step.gain)


def _greedy(
    units: Sequence[Sequence[Item]], hulls: Sequence[Sequence[int]], steps: Sequence[_Step], budget: int
) -> list[int]:
    """A good choice: from the smallest options on, every step that still fits."""
    chosen = [hull[0] for hull in hulls]
    left = budget - sum(items[option].nbytes for items, option in zip(units, chosen, strict=True))
    stuck = set()
    for step in steps:
        if step.unit in stuck:
            continue
        if step.nbytes > left:
            stuck.add(step.unit)
            continue
        chosen[step.unit] = step.option
        left -= step.nbytes
    return chosen


def _relax(
    units: Sequence[Sequence[Item]], hulls: Sequence[Sequence[int]], steps: Sequence[_Step], first: int
) -> _Relaxation:
    """The relaxation of the units from `first` on."""
    smallest = [items[hull[0]] for items, hull in zip(units[first:], hulls[first:], strict=True)]
    later = [step for step in steps if step.unit >= first]
    nbytes = [sum(item.nbytes for item in smallest), *(step.nbytes for step in later)]
    loss = [sum(item.loss for item in smallest), *(step.loss for step in later)]
    return _Relaxation(np.cumsum(np.array(nbytes, np.float64)), np.cumsum(np.array(loss, np.float64)))


def _grow(states: _States, items: Sequence[Item]) -> _States:
    """Every state with every option of one more unit."""
    count = len(states.loss)
    option = np.repeat(np.arange(len(items)), count)
    parent = np.tile(np.arange(count), len(items))
    sizes = np.array([item.nbytes for item in items], np.int64)
    losses = np.array([item.loss for item in items], np.float64)
    return _States(
        states.nbytes[parent] + sizes[option], states.loss[parent] + losses[option], parent, option
    )


def _undominated(states: _States) -> _States:
    """The states that lose less than every smaller one, by size."""
    ordered = states[np.lexsort((states.loss, states.nbytes))]
    before = np.concatenate([[np.inf], np.minimum.accumulate(ordered.loss)[:-1]])
    return ordered[np.flatnonzero(ordered.loss < before)]


def _walk_back(states: Sequence[_States]) -> list[int]:
    """The options that lead to the last unit's best state."""
    row = int(states[-1].loss.argmin())
    options = []
    for layer in reversed(states[1:]):
        options.append(int(layer.option[row]))
        row = int(layer.parent[row])
    return options[::-1]
