"""The prompts that losses are measured on: questions about images, with the right answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_deploy.calibration import CalibrationSample, Conversation
from nvlm_deploy.calibration.sample import build_sample
from nvlm_deploy.config.sensitivity import ShownPrompts
from nvlm_deploy.preprocess import PromptBuilder
from nvlm_deploy.synthetic.documents import samples

DOCUMENTS = "generated documents, validation split"


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts with answers, all in memory; `name` says where they are from."""

    name: str
    samples: Sequence[CalibrationSample]

    def describe(self) -> ShownPrompts:
        """What a report says about them."""
        digests = b"".join(sample.digest() for sample in self.samples)
        return ShownPrompts(
            name=self.name,
            count=len(self.samples),
            positions=sum(len(answer_positions(sample)) for sample in self.samples),
            digest=hashlib.sha256(digests).hexdigest(),
        )


def document_prompts(builder: PromptBuilder, count: int) -> Prompts:
    """Questions about generated pages that neither training nor calibration nor the tests of answers see."""
    conversations = (
        Conversation.of(
            f"document {number} ({page.kind})",
            [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": page.question}]},
                {"role": "assistant", "content": page.answer},
            ],
            [page.image],
        )
        for number, page in enumerate(samples("validation", count, 0, builder.config.tile_size))
    )
    return Prompts(DOCUMENTS, [build_sample(each, builder) for each in conversations])


def answer_positions(sample: CalibrationSample) -> npt.NDArray[np.int64]:
    """Positions whose logits predict the answer, int64; the last one if there is no answer."""
    return np.arange(min(sample.prompt_length, len(sample)) - 1, max(len(sample) - 1, sample.prompt_length))
