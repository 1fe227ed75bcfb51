"""Exact match on generated documents: the answer's text must equal the only right one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nvlm_deploy.synthetic.documents import Sample

MAX_ANSWER_TOKENS = 16

AnswerFunction = Callable[[Sample], str]


@dataclass(frozen=True, slots=True)
class Miss:
    """A sample that was answered wrong."""

    kind: str
    question: str
    expected: str
    given: str


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Right answers and samples by kind of document, and what was missed."""

    right: dict[str, int]
    asked: dict[str, int]
    misses: tuple[Miss, ...]

    @property
    def share(self) -> float:
        """Right answers over all, 0 to 1."""
        return sum(self.right.values()) / sum(self.asked.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "exact_match": self.share,
            "samples": sum(self.asked.values()),
            "by_kind": {kind: self.right[kind] / self.asked[kind] for kind in self.asked},
            "misses": [
                {"kind": m.kind, "question": m.question, "expected": m.expected, "given": m.given}
                for m in self.misses
            ],
        }


def exact_match(
    samples: Iterable[Sample], answer: AnswerFunction, on_answer: Callable[[int], None] = lambda done: None
) -> ExactMatch:
    """Ask every sample's question and compare the answers, blank space at the ends aside.

    `on_answer` is told how many samples have been answered.
    """
    right: dict[str, int] = {}
    asked: dict[str, int] = {}
    misses = []
    for number, sample in enumerate(samples, start=1):
        given = answer(sample).strip()
        asked[sample.kind] = asked.get(sample.kind, 0) + 1
        right[sample.kind] = right.get(sample.kind, 0) + (given == sample.answer)
        if given != sample.answer:
            misses.append(Miss(sample.kind, sample.question, sample.answer, given))
        on_answer(number)
    return ExactMatch(right, asked, tuple(misses))
