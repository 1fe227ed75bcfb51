"""All recipes on one device: those that fit first, by predicted time of an answer; others with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvlm_deploy.config.catalog import list_names
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.planner.device_plan import DevicePlan
from nvlm_deploy.planner.request import Question, read_recipe

# An answer of so many tokens about the largest image is what recipes are ranked by.
ANSWER_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Ranking:
    """`plans` from the best to those that do not fit; `refused`: recipes that cannot be planned, and why."""

    plans: tuple[DevicePlan, ...]
    refused: tuple[tuple[str, str], ...]

    @property
    def best(self) -> DevicePlan | None:
        """The first one, if it fits."""
        return self.plans[0] if self.plans and self.plans[0].fits else None

    def to_dict(self) -> list[dict[str, Any]]:
        """Rows for JSON, in the order of the ranking."""
        rows: list[dict[str, Any]] = []
        for plan in self.plans:
            predicted = plan.prediction.to_dict()
            rows.append(
                {
                    "recipe": plan.recipe.name,
                    "fits": plan.fits,
                    "accuracy": accuracy_class(plan.recipe),
                    "reasons": list(plan.reasons),
                    "weights_bytes": plan.weights.to_dict(),
                    "memory_bytes": plan.memory.total,
                    "answer_s": answer_seconds(plan),
                    "predicted": {key: predicted[key] for key in ("ttft_ms", "decode_tokens_per_s")},
                }
            )
        for name, reason in self.refused:
            rows.append({"recipe": name, "fits": False, "reasons": [reason]})
        return rows


def rank_recipes(question: Question, *, runnable: bool = False) -> Ranking:
    """Plan every shipped recipe and rank them; `runnable`: only those that nothing but memory may refuse."""
    plans, refused = [], []
    for name in list_names("recipe"):
        try:
            recipe = read_recipe(name, ())
            if not runnable or not question.refusals(recipe):
                plans.append(question.plan(recipe))
        except NvlmError as error:
            refused.append((name, error.message))
    return Ranking(tuple(sorted(plans, key=_order)), tuple(refused))


def answer_seconds(plan: DevicePlan) -> float | None:
    """Predicted seconds of an answer of `ANSWER_TOKENS` about the largest image; None if not predicted."""
    prediction = plan.prediction
    if not prediction.ttft_ms or prediction.decode_tokens_per_s is None:
        return None
    first = prediction.ttft_ms[max(prediction.ttft_ms)] / 1000
    return round(first + (ANSWER_TOKENS - 1) / prediction.decode_tokens_per_s, 3)


def accuracy_class(recipe: Recipe) -> str:
    """How many bits the coarsest matrix has, and how they are chosen: docs/recipes.md has measured losses."""
    bits = {"fp32": 32, "fp16": 16, "int8": 8, "fp8": 8, "int4": 4, "nvfp4": 4}
    least = min(bits[part.format] for part in recipe.weights.all())
    if least >= 16:
        return f"{least} bits"
    return f"{least} bits, {'calibrated' if recipe.needs_calibration else 'no calibration'}"


def _order(plan: DevicePlan) -> tuple[bool, float, int]:
    """Refused ones last; of two that are as fast, the one with more bits has fewer errors and comes first."""
    seconds = answer_seconds(plan)
    # Without figures of the machine, what is read for a token stands for the time that it takes.
    size = float(plan.engine.total)
    return (not plan.fits, size if seconds is None else seconds, -plan.weights.total)
