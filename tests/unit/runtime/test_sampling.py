"""Choosing tokens."""

from __future__ import annotations

import numpy as np
import pytest

from nvlm_deploy.errors import UsageError
from nvlm_deploy.runtime.sampling import Sampler, Sampling, top_logits

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], dtype=np.float32))


def draws(sampling: Sampling, count: int = 4000) -> np.ndarray:
    sampler = Sampler(sampling)
    return np.bincount([sampler.choose(LOGITS) for _ in range(count)], minlength=4) / count


def test_greedy_by_default() -> None:
    assert Sampler(Sampling()).choose(LOGITS) == 1


def test_temperature_one_follows_the_distribution() -> None:
    np.testing.assert_allclose(draws(Sampling(temperature=1.0)), [0.1, 0.5, 0.15, 0.25], atol=0.03)


def test_low_temperature_sharpens() -> None:
    expected = np.array([0.1, 0.5, 0.15, 0.25]) ** 2
    np.testing.assert_allclose(draws(Sampling(temperature=0.5)), expected / expected.sum(), atol=0.03)


def test_top_k_keeps_the_best() -> None:
    np.testing.assert_allclose(draws(Sampling(temperature=1.0, top_k=2)), [0, 2 / 3, 0, 1 / 3], atol=0.03)


def test_top_p_keeps_the_token_that_crosses() -> None:
    np.testing.assert_allclose(draws(Sampling(temperature=1.0, top_p=0.6)), [0, 2 / 3, 0, 1 / 3], atol=0.03)


def test_same_seed_same_draws() -> None:
    one, two = (Sampler(Sampling(temperature=1.0, seed=5)) for _ in range(2))
    assert [one.choose(LOGITS) for _ in range(50)] == [two.choose(LOGITS) for _ in range(50)]


@pytest.mark.parametrize(
    "values",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"seed": -1}],
)
def test_bad_settings(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        Sampling(**values)  # type: ignore[arg-type]


def test_top_logits_are_sorted() -> None:
    assert [i for i, _ in top_logits(LOGITS, 3)] == [1, 3, 2]
