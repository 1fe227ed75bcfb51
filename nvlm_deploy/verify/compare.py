"""Compare what a subject computes with the reference: layers, logits, answers, and the reaction to tags.

Shapes: R rows, C width, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_deploy.eval.agreement import agreement
from nvlm_deploy.verify.prompts import VerifyPrompt
from nvlm_deploy.verify.states import Part, Place, Rows, States

# A choice that the reference holds for nearly as likely as its own, in nats, is no disagreement.
_NEAR_TIE = 0.1
# A reaction smaller than this, root mean square of log-probabilities, is rounding.
_NO_REACTION = 1e-5

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """Mean cosine over rows at one place; -1 if a number there is not finite.

    branch: the cosine of what the last branch has added, None at the start of a stream.
    """

    name: str
    part: Part
    cosine: float
    branch: float | None
    finite: bool


@dataclass(frozen=True, slots=True)
class AnswerFigures:
    """How the logits of one prompt's answer compare: means over `positions`, divergence in nats."""

    positions: int
    kl: float
    top1: float


@dataclass(frozen=True, slots=True)
class Reaction:
    """What exchanging two tags does to the log-probabilities behind the image.

    cosine: between the subject's change and the reference's. size: the subject's over the reference's;
    None for both if the reference does not react. changed: prompts whose first token becomes another.
    """

    prompts: int
    cosine: float | None
    size: float | None
    reference_changed: int
    subject_changed: int


def compare_states(places: Sequence[Place], reference: States, subject: States) -> list[LayerFigures]:
    """Figures of every place at which both have states."""
    figures = []
    for place in places:
        if place.name not in reference:
            continue
        ours, theirs = reference[place.name], subject[place.name]
        branch = None
        if place.before is not None:
            with np.errstate(invalid="ignore"):  # a difference of infinities is what is looked for
                added = theirs - subject[place.before]
            branch = mean_cosine(ours - reference[place.before], added)
        finite = bool(np.isfinite(theirs).all())
        figures.append(LayerFigures(place.name, place.part, mean_cosine(ours, theirs), branch, finite))
    return figures


def mean_cosine(reference_RC: Rows, subject_RC: Rows) -> float:
    """Mean of the rows' cosines, so that large rows count no more than others; -1 if not finite."""
    if not np.isfinite(subject_RC).all():
        return -1.0
    a_RC, b_RC = reference_RC.astype(np.float64), subject_RC.astype(np.float64)
    norms_R = np.linalg.norm(a_RC, axis=1) * np.linalg.norm(b_RC, axis=1)
    both_zero_R = ~a_RC.any(axis=1) & ~b_RC.any(axis=1)
    cosines_R = (a_RC * b_RC).sum(axis=1) / np.where(norms_R == 0, 1, norms_R)
    return float(np.where(both_zero_R, 1.0, cosines_R).mean())


def compare_answer(prompt: VerifyPrompt, reference_LV: Rows, subject_LV: Rows) -> AnswerFigures:
    """Figures of the positions that predict the answer."""
    count = len(prompt.answer_ids)
    ours, theirs = reference_LV[-count:], subject_LV[-count:]
    same = agreement(ours, theirs)
    return AnswerFigures(same.positions, same.kl, float(_agrees(ours, theirs).mean()))


def mean_figures(figures: Sequence[AnswerFigures]) -> AnswerFigures:
    """Figures of several prompts together; every position counts the same."""
    positions = sum(each.positions for each in figures)
    kl = sum(each.kl * each.positions for each in figures) / positions
    return AnswerFigures(positions, kl, sum(each.top1 * each.positions for each in figures) / positions)


def answered_right(prompt: VerifyPrompt, logits_LV: Rows) -> bool:
    """Whether greedy decoding gives the right answer: each of its tokens is the best one in its place."""
    return bool((logits_LV[-len(prompt.answer_ids) :].argmax(axis=1) == prompt.answer_ids).all())


def compare_reactions(
    prompts: Sequence[VerifyPrompt],
    reference: Sequence[tuple[Rows, Rows]],
    subject: Sequence[tuple[Rows, Rows]],
) -> Reaction:
    """Compare the changes of all prompts together.

    Args:
        prompts: with the tags in order; what counts are positions behind the image, up to the answer.
        reference, subject: logits [L, V] with the tags in order and exchanged.
    """
    dot = ours = theirs = 0.0
    count = changed = subject_changed = 0
    for prompt, of_reference, of_subject in zip(prompts, reference, subject, strict=True):
        asked = prompt.sequence.prompt_length - int(prompt.logit_positions[0])
        a, b = _change(of_reference, asked), _change(of_subject, asked)
        dot, ours, theirs = dot + float((a * b).sum()), ours + _squares(a), theirs + _squares(b)
        count += a.size
        changed += _other_token(of_reference, asked)
        subject_changed += _other_token(of_subject, asked)
    cosine: float | None = None
    size: float | None = None
    if count and np.sqrt(ours / count) > _NO_REACTION:
        finite = np.isfinite(theirs) and theirs > 0
        cosine = dot / float(np.sqrt(ours * theirs)) if finite else 0.0
        size = float(np.sqrt(theirs / ours)) if np.isfinite(theirs) else 0.0
    return Reaction(len(prompts), cosine, size, changed, subject_changed)


def _agrees(reference_LV: Rows, subject_LV: Rows) -> npt.NDArray[np.bool_]:
    rows = np.arange(len(reference_LV))
    log_p_LV = log_softmax(reference_LV)
    finite_L = np.isfinite(subject_LV).all(axis=1)
    chosen_L = np.where(np.isfinite(subject_LV), subject_LV, -np.inf).argmax(axis=1)
    near_L: npt.NDArray[np.bool_] = log_p_LV[rows, chosen_L] >= log_p_LV.max(axis=1) - _NEAR_TIE
    return near_L & finite_L


def _change(pair: tuple[Rows, Rows], positions: int) -> Float64:
    before, after = pair
    return log_softmax(after[:positions]) - log_softmax(before[:positions])


def _squares(change: Float64) -> float:
    return float((change * change).sum())


def _other_token(pair: tuple[Rows, Rows], positions: int) -> bool:
    return bool(pair[0][positions - 1].argmax() != pair[1][positions - 1].argmax())


def log_softmax(logits_LV: Rows) -> Float64:
    """Log-probabilities in float64."""
    with np.errstate(invalid="ignore"):  # rows that are not finite stay so
        shifted_LV = logits_LV.astype(np.float64) - logits_LV.max(axis=1, keepdims=True)
        log_p_LV: Float64 = shifted_LV - np.log(np.exp(shifted_LV).sum(axis=1, keepdims=True))
    return log_p_LV
