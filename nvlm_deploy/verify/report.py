"""The outcome of a verification: checks, and the figures behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from nvlm_deploy.errors import VerificationError
from nvlm_deploy.verify.checks import Check, TaskRow, json_number
from nvlm_deploy.verify.compare import LayerFigures, Reaction
from nvlm_deploy.verify.weights import WeightFigure


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One prompt, its answers, and the divergence of its logits in nats.

    given: the engine's text; None where no runtime has answered.
    """

    label: str
    row: str
    question: str
    expected: str
    given: str | None
    reference_right: bool
    subject_right: bool
    kl: float
    top1: float
    image: Image.Image | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the image."""
        return {
            "label": self.label,
            "row": self.row,
            "question": self.question,
            "expected": self.expected,
            "given": self.given,
            "reference_right": self.reference_right,
            "subject_right": self.subject_right,
            "kl": json_number(self.kl),
            "top1": self.top1,
        }


@dataclass(frozen=True, slots=True, eq=False)
class VerifyReport:
    """What was verified, with what, and what came out.

    kind: `engine` or `checkpoint`. examples: all prompts, the worst first.
    """

    subject: str
    against: str
    kind: str
    recipe: str
    target: str
    checkpoint_fingerprint: str
    versions: dict[str, str]
    seconds: float
    checks: tuple[Check, ...]
    weights: tuple[WeightFigure, ...]
    layers: tuple[LayerFigures, ...]
    tasks: tuple[TaskRow, ...]
    reaction: Reaction
    examples: tuple[Example, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def passed(self) -> bool:
        return not self.failed

    def require_passed(self) -> None:
        """Raise if a check did not pass.

        Raises:
            VerificationError: names every such check with its figure, its limit and the place to look at.
        """
        if self.passed:
            return
        lines = "".join(f"\n  - {check.sentence()}" for check in self.failed)
        count = f"{len(self.failed)} of {len(self.checks)} checks"
        raise VerificationError(
            f"{self.subject} does not answer like {self.against}: {count} failed{lines}",
            hint="--report FILE.html shows all layers; a recipe's section verify sets the limits",
        )

    def summary(self) -> dict[str, Any]:
        """What the bundle's manifest keeps."""
        return {
            "passed": self.passed,
            "failed": [check.name for check in self.failed],
            "checkpoint_fingerprint": self.checkpoint_fingerprint,
            "prompts": len(self.examples),
            "figures": {
                check.name: {"figure": json_number(check.figure), "limit": check.limit, "place": check.place}
                for check in self.checks
            },
            "versions": self.versions,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "subject": self.subject,
            "against": self.against,
            "kind": self.kind,
            "passed": self.passed,
            "recipe": self.recipe,
            "target": self.target,
            "checkpoint_fingerprint": self.checkpoint_fingerprint,
            "versions": self.versions,
            "seconds": round(self.seconds, 3),
            "checks": [check.to_dict() for check in self.checks],
            "weights": [{"name": each.name, "error": json_number(each.error)} for each in self.weights],
            "layers": [_layer(each) for each in self.layers],
            "exact_match": [_task(each) for each in self.tasks],
            "tag_swap": _reaction(self.reaction),
            "prompts": [example.to_dict() for example in self.examples],
        }


def worst_first(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Lost answers first, then the largest divergence."""
    return tuple(sorted(examples, key=lambda e: (e.subject_right or not e.reference_right, -e.kl)))


def _layer(figures: LayerFigures) -> dict[str, Any]:
    return {
        "name": figures.name,
        "part": figures.part,
        "cosine": figures.cosine,
        "branch_cosine": figures.branch,
        "finite": figures.finite,
    }


def _task(row: TaskRow) -> dict[str, Any]:
    counts = {"asked": row.asked, "reference_right": row.reference_right, "right": row.subject_right}
    return {"row": row.row, **counts}


def _reaction(reaction: Reaction) -> dict[str, Any]:
    return {
        "prompts": reaction.prompts,
        "cosine": reaction.cosine,
        "size": reaction.size,
        "first_token_changes": reaction.subject_changed,
        "reference_first_token_changes": reaction.reference_changed,
    }
