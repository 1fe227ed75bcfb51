"""The prompts that losses are measured on: questions about images, with the right answers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nvlm_deploy.calibration import CalibrationSample, Conversation
from nvlm_deploy.calibration.sample import build_sample
from nvlm_deploy.calibration.sources import TRANSCRIBE
from nvlm_deploy.config.sensitivity import UsedPrompts
from nvlm_deploy.preprocess import PromptBuilder
from nvlm_deploy.synthetic.documents import Exchange, document


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts with answers, all in memory; `name` is that of a calibration set, None for generated pages."""

    name: str | None
    samples: Sequence[CalibrationSample]

    def describe(self) -> UsedPrompts:
        """What a report says about them."""
        digests = b"".join(sample.digest() for sample in self.samples)
        return UsedPrompts(
            name=self.name,
            count=len(self.samples),
            positions=sum(len(answer_positions(sample)) for sample in self.samples),
            digest=hashlib.sha256(digests).hexdigest(),
        )


def document_prompts(builder: PromptBuilder, count: int) -> Prompts:
    """Generated pages that neither training nor calibration nor measurements of answers see.

    Every other prompt asks for the whole text: short answers are mostly certain, and say little about errors.
    """
    return Prompts(None, [build_sample(_conversation(number, builder), builder) for number in range(count)])


def _conversation(number: int, builder: PromptBuilder) -> Conversation:
    page = document("validation", number, builder.config.tile_size)
    asked = random.Random(f"validation-{number}-question").choice(page.exchanges)
    if number % 2:
        asked = Exchange(TRANSCRIBE, page.transcript)
    content = [{"type": "image"}, {"type": "text", "text": asked.question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    messages.append({"role": "assistant", "content": asked.answer})
    return Conversation.of(f"document {number} ({page.kind})", messages, [page.image])


def answer_positions(sample: CalibrationSample) -> npt.NDArray[np.int64]:
    """Positions whose logits predict the answer, int64; the last one if there is no answer."""
    return np.arange(min(sample.prompt_length, len(sample)) - 1, max(len(sample) - 1, sample.prompt_length))
