"""Each figure alone, on made-up numbers."""

from __future__ import annotations

import numpy as np
import pytest

from nvlm_deploy.verify.compare import (
    AnswerFigures,
    answered_right,
    compare_answer,
    compare_reactions,
    compare_states,
    mean_cosine,
    mean_figures,
)
from nvlm_deploy.verify.measure import PromptSet
from nvlm_deploy.verify.prompts import VerifyPrompt
from nvlm_deploy.verify.states import Place, Rows

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Rows:
    return RNG.normal(size=shape).astype(np.float32)


def test_a_cosine_is_a_mean_over_rows_of_any_size() -> None:
    a = normal(6, 8)
    assert mean_cosine(a, a * 3) == pytest.approx(1)
    turned = a.copy()
    turned[0] *= -1
    assert mean_cosine(a, turned) == pytest.approx(1 - 2 / 6)
    huge = turned.copy()
    huge[1] *= 1e6
    assert mean_cosine(a, huge) == pytest.approx(1 - 2 / 6)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_numbers_that_are_not_finite_have_the_worst_cosine(value: float) -> None:
    b = normal(3, 4)
    b[1, 2] = value
    assert mean_cosine(normal(3, 4), b) == -1


def test_rows_of_zeros_agree_with_zeros_alone() -> None:
    zeros, a = np.zeros((2, 4), np.float32), normal(2, 4)
    assert mean_cosine(zeros, zeros) == 1
    assert mean_cosine(a, zeros) == 0


def test_a_broken_branch_shows_where_the_stream_hides_it() -> None:
    places = [Place("in", "decoder", None), Place("out", "decoder", None, "in")]
    stream, added = normal(5, 16) * 100, normal(5, 16)
    start, after = compare_states(
        places, {"in": stream, "out": stream + added}, {"in": stream, "out": stream - added}
    )
    assert start.branch is None
    assert after.cosine > 0.999
    assert after.branch == pytest.approx(-1, abs=1e-4)


def test_answers_are_compared_at_their_positions_alone(prompts: PromptSet) -> None:
    prompt = prompts.asked[3]
    assert prompt.row == "position"
    logits = normal(len(prompt.logit_positions), 320)
    other = logits.copy()
    other[: -len(prompt.answer_ids)] *= -1
    same = compare_answer(prompt, logits, other)
    assert (same.kl, same.top1) == (0, 1)
    other[-1] = -logits[-1]
    assert compare_answer(prompt, logits, other).top1 == pytest.approx(1 - 1 / len(prompt.answer_ids))


def test_a_near_tie_is_no_disagreement(prompts: PromptSet) -> None:
    prompt = prompts.asked[0]
    count = len(prompt.answer_ids)
    logits = np.zeros((count, 320), np.float32)
    logits[:, 1], logits[:, 2] = 5.0, 4.95
    tied, apart = logits.copy(), logits.copy()
    tied[:, 2] = 5.05
    apart[:, 3] = 6
    assert compare_answer(prompt, logits, tied).top1 == 1
    assert compare_answer(prompt, logits, apart).top1 == 0


def test_a_candidate_that_is_not_finite_agrees_nowhere(prompts: PromptSet) -> None:
    prompt = prompts.asked[0]
    logits = normal(len(prompt.answer_ids), 320)
    figures = compare_answer(prompt, logits, np.full_like(logits, np.nan))
    assert (figures.kl, figures.top1) == (np.inf, 0)


def test_an_answer_is_right_with_the_end_of_its_turn(prompts: PromptSet) -> None:
    prompt = prompts.asked[0]
    logits = np.zeros((len(prompt.answer_ids), 320), np.float32)
    logits[np.arange(len(logits)), prompt.answer_ids] = 1
    assert answered_right(prompt, logits)
    logits[-1, 7] = 2
    assert not answered_right(prompt, logits)


def test_longer_answers_count_for_more() -> None:
    assert mean_figures([AnswerFigures(1, 4.0, 0.0), AnswerFigures(3, 0.0, 1.0)]) == AnswerFigures(
        4, 1.0, 0.75
    )


@pytest.fixture
def asked(prompts: PromptSet) -> VerifyPrompt:
    return prompts.asked[3]


def test_the_same_reaction_has_cosine_and_size_1(asked: VerifyPrompt) -> None:
    pair = normal(len(asked.logit_positions), 320), normal(len(asked.logit_positions), 320)
    reaction = compare_reactions([asked], [pair], [pair])
    assert reaction.cosine == pytest.approx(1)
    assert reaction.size == pytest.approx(1)
    assert reaction.subject_changed == reaction.reference_changed == 1


def test_an_engine_that_ignores_tags_does_not_react(asked: VerifyPrompt) -> None:
    before, after = normal(len(asked.logit_positions), 320), normal(len(asked.logit_positions), 320)
    reaction = compare_reactions([asked], [(before, after)], [(before, before)])
    assert (reaction.cosine, reaction.size) == (0, 0)
    assert (reaction.reference_changed, reaction.subject_changed) == (1, 0)


def test_a_reaction_of_another_size_keeps_its_direction(asked: VerifyPrompt) -> None:
    before = np.zeros((len(asked.logit_positions), 320), np.float32)
    change = normal(*before.shape) * 0.01
    reaction = compare_reactions([asked], [(before, change)], [(before, change * 0.1)])
    assert reaction.cosine == pytest.approx(1, abs=1e-3)
    assert reaction.size == pytest.approx(0.1, rel=0.01)


def test_a_reference_that_does_not_react_gives_no_figure(asked: VerifyPrompt) -> None:
    before = normal(len(asked.logit_positions), 320)
    reaction = compare_reactions([asked], [(before, before)], [(before, before + 1)])
    assert (reaction.cosine, reaction.size) == (None, None)


def test_numbers_that_are_not_finite_are_no_reaction(asked: VerifyPrompt) -> None:
    before, after = normal(len(asked.logit_positions), 320), normal(len(asked.logit_positions), 320)
    broken = np.full_like(before, np.nan)
    reaction = compare_reactions([asked], [(before, after)], [(before, broken)])
    assert (reaction.cosine, reaction.size) == (0, 0)


def test_exchanged_neighbors_change_nothing_but_their_tags(prompts: PromptSet) -> None:
    number, swapped = prompts.swapped[0]
    original = prompts.asked[number]
    different = np.flatnonzero(original.sequence.input_ids != swapped.sequence.input_ids)
    assert len(different) == 2
    assert not np.isin(different, original.sequence.visual_positions).any()
    np.testing.assert_array_equal(original.sequence.tiles, swapped.sequence.tiles)
    np.testing.assert_array_equal(original.logit_positions, swapped.logit_positions)
