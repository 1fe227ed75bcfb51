"""Figures become verdicts that name the place."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nvlm_deploy.config.thresholds import VerifyThresholds, default_thresholds
from nvlm_deploy.verify.checks import (
    Check,
    TaskRow,
    allowed_losses,
    contract_checks,
    json_number,
    kv_cache_checks,
    layer_checks,
    logit_checks,
    reaction_checks,
    show,
    task_checks,
    weight_checks,
)
from nvlm_deploy.verify.compare import AnswerFigures, LayerFigures, Reaction
from nvlm_deploy.verify.contract_check import ContractResult
from nvlm_deploy.verify.states import Part
from nvlm_deploy.verify.weights import WeightFigure

LIMITS = VerifyThresholds(**default_thresholds(8, 8))


def layer(name: str, cosine: float, branch: float | None, part: Part = "decoder") -> LayerFigures:
    return LayerFigures(name, part, cosine, branch, finite=cosine > -1)


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_the_first_layer_below_the_limit_is_named_and_not_the_worst() -> None:
    figures = [layer("0", 1, None), layer("1", 0.999, 0.5), layer("2", 0.9, 0.1), layer("3", 0.8, 0.9)]
    checks = by_name(layer_checks(figures, LIMITS))
    assert (
        checks["decoder, cosine of the stream"].place,
        checks["decoder, cosine of the stream"].figure,
    ) == (
        "2",
        0.9,
    )
    assert checks["decoder, cosine of a branch"].place == "1"
    assert "tower, cosine of the stream" not in checks


def test_a_healthy_part_names_its_worst_layer() -> None:
    figures = [layer("0", 0.9999, None, "tower"), layer("1", 0.9991, 0.999, "tower")]
    check = by_name(layer_checks(figures, LIMITS))["tower, cosine of the stream"]
    assert check.passed
    assert (check.place, check.figure) == ("1", 0.9991)


def test_the_worst_matrix_and_all_beyond_the_limit_are_named() -> None:
    figures = [WeightFigure(f"language.layers.{i}", error) for i, error in enumerate((0.01, 0.2, 0.9))]
    tower, decoder = weight_checks([*figures, WeightFigure("projector.fc1.weight", 0.001)], LIMITS)
    assert tower.passed
    assert tower.place == "projector.fc1.weight"
    assert decoder.figure == 0.9
    assert decoder.place == "language.layers.1, language.layers.2"
    assert decoder.note == "2 of 3 matrices beyond the limit"
    assert all(check.passed and check.figure is None for check in weight_checks([], LIMITS))


@pytest.mark.parametrize("figure", [math.inf, math.nan])
def test_what_is_no_number_passes_no_limit(figure: float) -> None:
    assert not Check("kl", "logits", figure, 0.1, at_least=False).passed
    assert not Check("cosine", "layers", -figure, 0.1, at_least=True).passed
    assert json_number(figure) == str(figure)


def test_logits_are_held_against_their_own_limits() -> None:
    checks = logit_checks(AnswerFigures(500, 0.02, 0.94), AnswerFigures(500, 0.01, 0.95), LIMITS)
    assert [check.passed for check in checks] == [False, False, True, True]


def test_of_few_positions_as_many_may_differ_as_chance_explains() -> None:
    passed = [
        [check.passed for check in logit_checks(few, few, LIMITS) if "top-1" in check.name]
        for few in (AnswerFigures(7, 0, same / 7) for same in (6, 5, 4))
    ]
    assert passed == [[True, True], [False, True], [False, False]]


def test_a_row_of_few_answers_may_lose_one_and_gains_do_not_count() -> None:
    rows = [TaskRow("ocr", 8, 8, 7), TaskRow("table", 8, 6, 8), TaskRow("chart", 8, 8, 6)]
    checks = by_name(task_checks(rows, LIMITS))
    passed = [checks[f"exact match, {row}, answers lost"].passed for row in ("ocr", "table", "chart")]
    assert passed == [True, True, False]
    assert checks["exact match, all, answers lost"].figure == 1


@pytest.mark.parametrize(("asked", "share"), [(8, 0.02), (40, 0.02), (40, 0.04), (500, 0.02), (2, 0.0)])
def test_losses_that_chance_explains_are_allowed(asked: int, share: float) -> None:
    drawn = np.random.default_rng(0).binomial(asked, share, 200_000)
    allowed = allowed_losses(asked, share)
    assert (drawn > allowed).mean() <= 0.052
    assert allowed == 1 or (drawn > allowed - 1).mean() >= 0.048


@pytest.mark.parametrize(
    ("size", "passed"), [(0.59, False), (0.61, True), (1.6, True), (1.7, False), (0, False)]
)
def test_a_reaction_may_be_neither_smaller_nor_larger(size: float, passed: bool) -> None:
    _, check = reaction_checks(Reaction(4, 0.9, size, 1, 1), LIMITS)
    assert check.passed == passed


def test_without_a_reaction_of_the_reference_nothing_is_judged() -> None:
    checks = reaction_checks(Reaction(4, None, None, 0, 0), LIMITS)
    assert all(
        check.passed and check.note == "the reference does not react to its tile tags" for check in checks
    )


def test_a_kv_cache_is_judged_by_divergence_and_answers() -> None:
    good = kv_cache_checks(AnswerFigures(9, 0.001, 1), TaskRow("all", 40, 40, 39), LIMITS)
    bad = kv_cache_checks(AnswerFigures(9, 0.1, 1), TaskRow("all", 40, 40, 36), LIMITS)
    assert [check.passed for check in good] == [True, True]
    assert [check.passed for check in bad] == [False, False]


def test_a_contract_is_held_exactly() -> None:
    ids, tiles = contract_checks(ContractResult(3, ("a: wrong", "b: wrong"), ()))
    assert (ids.passed, ids.figure, ids.note) == (False, 2, "a: wrong; b: wrong")
    assert (tiles.passed, tiles.note) == (True, "3 inputs compared")


def test_a_sentence_has_figure_limit_and_place() -> None:
    check = Check("cosine", "layers", 0.5, 0.99, True, "language.layers.3.mlp", "a note")
    assert check.sentence() == "cosine at language.layers.3.mlp is 0.5, at least 0.99 is needed (a note)"


@pytest.mark.parametrize(
    ("figure", "text"),
    [(None, "not measured"), (math.inf, "not finite"), (0.999967, "0.999967"), (0.98, "0.98"), (1, "1"),
     (0.00001234, "1.23e-05"), (16, "16"), (0, "0")],
)  # fmt: skip
def test_figures_are_shown_in_few_digits(figure: float | None, text: str) -> None:
    assert show(figure) == text
