"""Figures against thresholds: the checks that a subject passes or fails, each with the place to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nvlm_deploy.config.thresholds import VerifyThresholds
from nvlm_deploy.verify.compare import AnswerFigures, LayerFigures, Reaction
from nvlm_deploy.verify.contract_check import ContractResult
from nvlm_deploy.verify.weights import WeightFigure

Group = Literal["contract", "weights", "layers", "logits", "answers", "tags", "kv cache"]
_SHOWN_FINDINGS = 3
# How often an engine that loses just what is allowed may be refused for bad luck.
_CHANCE = 0.05


@dataclass(frozen=True, slots=True)
class Check:
    """One figure that is held against a limit.

    figure: None if it could not be measured, and then the check passes with a `note` that says why.
    at_least: whether the limit is a lower one. place: where to look, such as a layer. note: more in words.
    """

    name: str
    group: Group
    figure: float | None
    limit: float
    at_least: bool
    place: str = ""
    note: str = ""

    @property
    def passed(self) -> bool:
        if self.figure is None:
            return True
        # A figure that is no number passes neither way.
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def sentence(self) -> str:
        """The check in words, for errors."""
        relation = "at least" if self.at_least else "at most"
        where = f" at {self.place}" if self.place else ""
        note = f" ({self.note})" if self.note else ""
        return f"{self.name}{where} is {show(self.figure)}, {relation} {show(self.limit)} is needed{note}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "group": self.group,
            "passed": self.passed,
            "figure": json_number(self.figure),
            "limit": self.limit,
            "limit_is": "least" if self.at_least else "most",
            "place": self.place,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class TaskRow:
    """Right answers of one row of the task set."""

    row: str
    asked: int
    reference_right: int
    subject_right: int


def contract_checks(result: ContractResult) -> list[Check]:
    """Token ids and tiles of the runtime must be exactly those of the contract."""
    found = (("prompt ids", result.wrong_ids), ("tiles", result.wrong_tiles))
    return [
        Check(
            name=f"{name}, inputs that differ",
            group="contract",
            figure=len(wrong),
            limit=0,
            at_least=False,
            place="the runtime's preprocessing" if wrong else "",
            note="; ".join(wrong[:_SHOWN_FINDINGS]) or f"{result.checked} inputs compared",
        )
        for name, wrong in found
    ]


def weight_checks(figures: Sequence[WeightFigure], limits: VerifyThresholds) -> list[Check]:
    """The matrix that differs most from the checkpoint's, in tower and projector and in the decoder."""
    parts = (("tower", limits.tower_weight_error), ("decoder", limits.decoder_weight_error))
    checks = []
    for part, limit in parts:
        of_part = [each for each in figures if each.name.startswith("language.") == (part == "decoder")]
        worst = max(of_part, key=lambda each: each.error, default=None)
        beyond = [each.name for each in of_part if each.error > limit]
        places = beyond if beyond else [] if worst is None else [worst.name]
        checks.append(
            Check(
                name=f"{part}, error of a matrix",
                group="weights",
                figure=None if worst is None else worst.error,
                limit=limit,
                at_least=False,
                place=", ".join(places[:_SHOWN_FINDINGS]),
                note=f"{len(beyond)} of {len(of_part)} matrices beyond the limit",
            )
        )
    return checks


def layer_checks(figures: Sequence[LayerFigures], limits: VerifyThresholds) -> list[Check]:
    """The worst cosine of every part; a failure names the first layer below the limit."""
    tower = [each for each in figures if each.part == "tower"]
    projector = [each for each in figures if each.part == "projector"]
    decoder = [each for each in figures if each.part == "decoder"]
    checks = [
        _layer_check("tower, cosine of the stream", tower, _stream, limits.tower_cosine),
        _layer_check("tower, cosine of a branch", tower, _branch, limits.tower_branch_cosine),
        _layer_check("projector, cosine", projector, _stream, limits.projector_cosine),
        _layer_check("decoder, cosine of the stream", decoder, _stream, limits.decoder_cosine),
        _layer_check("decoder, cosine of a branch", decoder, _branch, limits.decoder_branch_cosine),
    ]
    return [check for check in checks if check is not None]


def logit_checks(image: AnswerFigures, text: AnswerFigures, limits: VerifyThresholds) -> list[Check]:
    """Divergence and agreement of the logits that predict answers."""
    return [
        Check("image prompts, KL", "logits", image.kl, limits.image_kl, False, note=_positions(image)),
        _top1_check("image prompts, top-1", image, limits.image_top1),
        Check("text prompts, KL", "logits", text.kl, limits.text_kl, False, note=_positions(text)),
        _top1_check("text prompts, top-1", text, limits.text_top1),
    ]


def _top1_check(name: str, figures: AnswerFigures, least: float) -> Check:
    """Agreement of the best tokens; of a few positions, as many may differ as chance explains."""
    count = figures.positions
    agreed = round(figures.top1 * count)
    limit = min(least, (count - allowed_losses(count, 1 - least)) / count)
    return Check(name, "logits", agreed / count, limit, True, note=_positions(figures))


def task_checks(rows: Sequence[TaskRow], limits: VerifyThresholds) -> list[Check]:
    """Right answers that the reference gives and the subject has lost, in every row and in all together."""
    total = TaskRow(
        "all",
        sum(row.asked for row in rows),
        sum(row.reference_right for row in rows),
        sum(row.subject_right for row in rows),
    )
    return [
        Check(
            name=f"exact match, {row.row}, answers lost",
            group="answers",
            figure=max(row.reference_right - row.subject_right, 0),
            limit=allowed_losses(row.asked, limits.lost_answers),
            at_least=False,
            note=f"{row.subject_right} of {row.asked} right, the reference {row.reference_right}",
        )
        for row in [total, *rows]
    ]


def reaction_checks(reaction: Reaction, limits: VerifyThresholds) -> list[Check]:
    """Exchanging two tile tags must change what the reference changes, and as much."""
    size = reaction.size
    if size is not None and size > 1:
        size = 1 / size
    note = (
        f"{reaction.prompts} prompts; the first token changes in {reaction.subject_changed}, "
        f"the reference's in {reaction.reference_changed}"
    )
    if reaction.cosine is None:
        note = "the reference does not react to its tile tags"
    return [
        Check(
            "tag swap, cosine of the change", "tags", reaction.cosine, limits.tag_swap_cosine, True, note=note
        ),
        Check("tag swap, size of the change", "tags", size, limits.tag_swap_size, True, note=note),
    ]


def kv_cache_checks(added: AnswerFigures, lost: TaskRow, limits: VerifyThresholds) -> list[Check]:
    """What an FP8 KV cache changes, the same weights without it as the reference."""
    allowed = allowed_losses(lost.asked, limits.lost_answers)
    note = f"{lost.subject_right} of {lost.asked} right, with a plain cache {lost.reference_right}"
    figure = max(lost.reference_right - lost.subject_right, 0)
    return [
        Check("FP8 KV cache, KL", "kv cache", added.kl, limits.kv_cache_kl, False, note=_positions(added)),
        Check("FP8 KV cache, answers lost", "kv cache", figure, allowed, False, note=note),
    ]


def allowed_losses(asked: int, share: float) -> int:
    """The number of lost answers of `asked` that a true loss of `share` exceeds in at most 5 % of all cases.

    At least one: a single answer is no evidence.
    """
    beyond = 1.0
    for lost in range(asked + 1):
        beyond -= math.comb(asked, lost) * share**lost * (1 - share) ** (asked - lost)
        if lost and beyond <= _CHANCE:
            return lost
    return asked


def show(figure: float | None) -> str:
    """A figure as people read it."""
    if figure is None:
        return "not measured"
    if not math.isfinite(figure):
        return "not finite"
    # Cosines are told by how far they are from 1.
    return f"{figure:.6f}".rstrip("0").rstrip(".") if 0.9 < abs(figure) <= 1 else f"{figure:.3g}"


def json_number(figure: float | None) -> float | str | None:
    """A figure as JSON can hold it: not-finite ones are texts."""
    return figure if figure is None or math.isfinite(figure) else str(figure)


def _layer_check(
    name: str,
    figures: Sequence[LayerFigures],
    measure: Callable[[LayerFigures], float | None],
    limit: float,
) -> Check | None:
    known = [(value, each) for each in figures if (value := measure(each)) is not None]
    if not known:
        return None
    worst, at = min(known, key=lambda pair: pair[0])
    below = [(value, each) for value, each in known if value < limit]
    # What comes after a broken layer sees broken inputs: the first one is the one to look at.
    value, place = below[0] if below else (worst, at)
    note = "" if place.finite else "numbers that are not finite"
    return Check(name, "layers", value, limit, True, place.name, note)


def _stream(figures: LayerFigures) -> float | None:
    return figures.cosine


def _branch(figures: LayerFigures) -> float | None:
    return figures.branch


def _positions(figures: AnswerFigures) -> str:
    return f"{figures.positions} positions"
