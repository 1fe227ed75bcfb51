"""The choice of the rows that searches see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_deploy.calibration import TokenClass
from nvlm_deploy.quantization.observe import choose_rows

CLASSES = st.lists(
    st.lists(st.sampled_from(list(TokenClass)), max_size=30).map(lambda rows: np.array(rows, np.int8)),
    min_size=1,
    max_size=5,
)
WEIGHTS = st.fixed_dictionaries({kind: st.sampled_from([0.0, 0.1, 1.0, 7.5]) for kind in TokenClass})


@settings(deadline=None, max_examples=50)
@given(CLASSES, WEIGHTS, st.integers(0, 60), st.integers(0, 5))
def test_rows_are_chosen_once_and_only_where_they_count(
    classes: list[npt.NDArray[np.int8]], weights: dict[TokenClass, float], most: int, seed: int
) -> None:
    chosen = choose_rows(classes, weights, most, seed)
    assert [rows.tolist() for rows in chosen] == [sorted(set(rows.tolist())) for rows in chosen]
    eligible = [np.array([weights[TokenClass(kind)] > 0 for kind in sample], bool) for sample in classes]
    assert all(eligible[i][rows].all() for i, rows in enumerate(chosen))
    assert sum(len(rows) for rows in chosen) == min(most, sum(int(rows.sum()) for rows in eligible))
    again = choose_rows(classes, weights, most, seed)
    assert all(np.array_equal(a, b) for a, b in zip(chosen, again, strict=True))


def test_another_seed_chooses_other_rows() -> None:
    classes = [np.zeros(1000, np.int8)]
    weights = dict.fromkeys(TokenClass, 1.0)
    first, second = (choose_rows(classes, weights, 100, seed)[0] for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_a_class_of_twice_the_weight_is_chosen_twice_as_often() -> None:
    half = np.full(20_000, TokenClass.TEXT, np.int8)
    classes = [np.concatenate([half, np.full_like(half, TokenClass.VISUAL)])]
    weights = {**dict.fromkeys(TokenClass, 1.0), TokenClass.VISUAL: 2.0}
    (rows,) = choose_rows(classes, weights, 2000, seed=11)
    visual = int((rows >= len(half)).sum())
    # 1,333 expected with a deviation of 21.
    assert 1250 < visual < 1420
