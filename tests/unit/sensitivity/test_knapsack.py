"""The choice of options against all choices there are."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.sensitivity.knapsack import Item, choose

ITEMS = st.builds(
    Item, nbytes=st.integers(1, 12), loss=st.sampled_from([0.0, 0.5, 1.0, 2.0]) | st.floats(0, 4)
)
UNITS = st.lists(st.lists(ITEMS, min_size=1, max_size=4), min_size=1, max_size=5)


def least_loss(units: list[list[Item]], budget: int) -> float:
    return min(
        sum(item.loss for item in items)
        for items in itertools.product(*units)
        if sum(item.nbytes for item in items) <= budget
    )


def smallest(units: list[list[Item]]) -> int:
    return sum(min(item.nbytes for item in items) for items in units)


@settings(max_examples=150, deadline=None)
@given(units=UNITS, more=st.integers(0, 20), states=st.sampled_from([1, 2, 20_000]))
def test_no_choice_loses_less_than_the_bound_says(units: list[list[Item]], more: int, states: int) -> None:
    budget = smallest(units) + more
    choice = choose(units, budget, states)
    picked = [items[option] for items, option in zip(units, choice.options, strict=True)]
    assert choice.nbytes == sum(item.nbytes for item in picked) <= budget
    assert choice.loss == pytest.approx(sum(item.loss for item in picked))
    best = least_loss(units, budget)
    assert choice.lower_bound <= best * (1 + 1e-9)
    assert best <= choice.loss * (1 + 1e-9)
    if states == 20_000:
        assert choice.exact
        assert choice.loss == pytest.approx(best)


def test_the_released_model_is_solved_exactly() -> None:
    rng = random.Random(0)
    units = []
    for weights in [123_000_000] * 45 + [620_000_000] + [877_000_000] * 80 + [1_246_000_000]:
        loss = 10 ** rng.uniform(-5, -2)
        int4 = Item(weights * 17 // 32, loss)
        units.append([Item(2 * weights, 0.0), Item(weights, loss * rng.uniform(0.005, 0.05)), int4])
    total = sum(items[1].nbytes for items in units)
    choices = [choose(units, int(total * bits / 8)) for bits in (4.5, 5, 6, 8)]
    assert all(choice.exact for choice in choices)
    losses = [choice.loss for choice in choices]
    assert losses == sorted(losses, reverse=True)


def test_a_budget_below_the_smallest_options_is_refused() -> None:
    units = [[Item(4, 1.0), Item(8, 0.0)], [Item(5, 1.0)]]
    with pytest.raises(UnsuitableError, match="take 9 bytes, and 8 are left"):
        choose(units, 8)
    assert choose(units, 9).options == (0, 0)
