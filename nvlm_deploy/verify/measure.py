"""Measure a subject against the reference on one set of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.verify.checks import TaskRow
from nvlm_deploy.verify.compare import (
    AnswerFigures,
    LayerFigures,
    Reaction,
    answered_right,
    compare_answer,
    compare_reactions,
    compare_states,
    mean_figures,
)
from nvlm_deploy.verify.contract import Contract
from nvlm_deploy.verify.probe_file import probe_prompts
from nvlm_deploy.verify.prompts import (
    IMAGE_ROWS,
    ROW_OF_KIND,
    VerifyPrompt,
    image_prompts,
    text_prompts,
    with_swapped_tags,
)
from nvlm_deploy.verify.report import Example
from nvlm_deploy.verify.states import Rows, States, decoder_places, tower_places
from nvlm_deploy.verify.walk import WalkResult
from nvlm_deploy.verify.weights import WeightFigure

# One page of every kind, and two texts.
_PROBED_IMAGES, _PROBED_TEXTS = len(ROW_OF_KIND), 2


@dataclass(frozen=True, slots=True, eq=False)
class SubjectOutputs:
    """What a subject makes of a `PromptSet`.

    weights: of every matrix that could be read. states: of the probed prompts. logits: float32
    [L, vocabulary] of all prompts. answers: the runtime's texts for the questions about images; None counts
    the logits' best tokens as the answer.
    """

    weights: Sequence[WeightFigure]
    states: States
    logits: Sequence[Rows]
    answers: Sequence[str] | None


@dataclass(frozen=True, slots=True, eq=False)
class PromptSet:
    """The prompts of one verification, in the order `asked`, then `swapped`.

    asked: questions about images, then about texts. swapped: for some of them, by their number in `asked`,
    the same with two tile tags exchanged. probed: numbers of those whose hidden states are compared.
    """

    asked: tuple[VerifyPrompt, ...]
    swapped: tuple[tuple[int, VerifyPrompt], ...]
    probed: tuple[int, ...]

    @classmethod
    def make(cls, contract: Contract, images: int) -> PromptSet:
        """`images` questions about images, a quarter as many about texts, an eighth with exchanged tags."""
        about_images, about_texts = (
            image_prompts(contract, images),
            text_prompts(contract, max(2, images // 4)),
        )
        asked = (*about_images, *about_texts)
        places = [i for i, prompt in enumerate(asked) if prompt.row == "position"][: max(1, images // 8)]
        return cls._of(contract, asked, images, places)

    @classmethod
    def from_file(cls, contract: Contract, path: Path) -> PromptSet:
        """Those of a JSONL file; texts are generated ones if the file has none.

        Raises:
            UsageError, NvlmError: as `probe_prompts`.
        """
        asked = probe_prompts(contract, path)
        images = sum(prompt.image is not None for prompt in asked)
        if images == len(asked):
            asked += text_prompts(contract, max(2, images // 4))
        several = [i for i in range(images) if contract.exchangeable(len(asked[i].sequence.tiles)) > 1]
        return cls._of(contract, tuple(asked), images, several[: max(1, images // 8)])

    @classmethod
    def _of(
        cls, contract: Contract, asked: tuple[VerifyPrompt, ...], images: int, places: Sequence[int]
    ) -> PromptSet:
        # Two neighbors, and the first tile with the thumbnail, or with the last that has its tag among keys.
        swapped = [
            (number, with_swapped_tags(contract, asked[number], 0, second))
            for number in places
            for second in (1, contract.exchangeable(len(asked[number].sequence.tiles)) - 1)
        ]
        texts = range(images, min(images + _PROBED_TEXTS, len(asked)))
        return cls(asked, tuple(swapped), (*range(min(images, _PROBED_IMAGES)), *texts))

    @property
    def all(self) -> tuple[VerifyPrompt, ...]:
        return (*self.asked, *(prompt for _, prompt in self.swapped))

    def probed_prompts(self, reference: WalkResult) -> tuple[list[VerifyPrompt], dict[int, Rows]]:
        """The prompts whose states are compared, and the reference's visual tokens by their number there."""
        visual = {i: reference.visual[n] for i, n in enumerate(self.probed) if n in reference.visual}
        return [self.asked[number] for number in self.probed], visual

    @property
    def images(self) -> tuple[VerifyPrompt, ...]:
        """The questions about images."""
        return tuple(prompt for prompt in self.asked if prompt.image is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Figures of one subject; `examples` are the questions in `asked`, in order."""

    weights: tuple[WeightFigure, ...]
    layers: tuple[LayerFigures, ...]
    image: AnswerFigures
    text: AnswerFigures
    tasks: tuple[TaskRow, ...]
    reaction: Reaction
    examples: tuple[Example, ...]


def measure(config: NvlmConfig, prompts: PromptSet, reference: WalkResult, found: SubjectOutputs) -> Measured:
    """Compare everything but the contracts."""
    places = (*tower_places(config), *decoder_places(config))
    asked = len(prompts.asked)
    answered = list(zip(prompts.asked, reference.logits[:asked], found.logits[:asked], strict=True))
    figures = [(prompt, compare_answer(prompt, ours, theirs)) for prompt, ours, theirs in answered]
    examples = _examples(answered, found.answers)
    return Measured(
        weights=tuple(found.weights),
        layers=tuple(compare_states(places, reference.states, found.states)),
        image=mean_figures([each for prompt, each in figures if prompt.image is not None]),
        text=mean_figures([each for prompt, each in figures if prompt.image is None]),
        tasks=task_rows(examples),
        reaction=_reaction(prompts, reference.logits, found.logits),
        examples=tuple(examples),
    )


def task_rows(examples: Sequence[Example]) -> tuple[TaskRow, ...]:
    """Right answers by row; prompts without an image are no part of the task set."""
    rows = {}
    for name in IMAGE_ROWS:
        of_row = [example for example in examples if example.row == name]
        if of_row:
            right = sum(e.reference_right for e in of_row), sum(e.subject_right for e in of_row)
            rows[name] = TaskRow(name, len(of_row), *right)
    return tuple(rows.values())


def _examples(
    answered: Sequence[tuple[VerifyPrompt, Rows, Rows]], answers: Sequence[str] | None
) -> list[Example]:
    given = iter(answers or ())
    examples = []
    for prompt, ours, theirs in answered:
        text = next(given) if answers is not None and prompt.image is not None else None
        right = answered_right(prompt, theirs) if text is None else text == prompt.exchange.answer
        figures = compare_answer(prompt, ours, theirs)
        examples.append(
            Example(
                label=prompt.label,
                row=prompt.row,
                question=prompt.exchange.question,
                expected=prompt.exchange.answer,
                given=text,
                reference_right=answered_right(prompt, ours),
                subject_right=right,
                kl=figures.kl,
                top1=figures.top1,
                image=prompt.image,
            )
        )
    return examples


def _reaction(prompts: PromptSet, reference: Sequence[Rows], logits: Sequence[Rows]) -> Reaction:
    first = len(prompts.asked)
    numbers = [number for number, _ in prompts.swapped]
    return compare_reactions(
        [prompts.asked[number] for number in numbers],
        [(reference[number], reference[first + i]) for i, number in enumerate(numbers)],
        [(logits[number], logits[first + i]) for i, number in enumerate(numbers)],
    )
