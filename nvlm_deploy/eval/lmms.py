"""An adapter for lmms-eval: its tasks, answered by an engine bundle or a checkpoint.

lmms-eval finds it by the entry point `lmms_eval.models` of this package (docs/guides/model_guide.md of
EvolvingLMMs-Lab/lmms-eval), and is the only one that imports this module:

    lmms-eval --model nvlm --model_args pretrained=BUNDLE --tasks docvqa_val
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.eval.answerers import open_generator
from nvlm_deploy.eval.chats import GreedySettings, chat_messages

MODEL_NAME = "nvlm"


class NvlmChat(lmms):
    """A chat model of lmms-eval 0.7: greedy, one question at a time, images and text."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        """Open the bundle or checkpoint `pretrained`.

        Args:
            device: of an engine; the CPU by default.
            batch_size, max_batch_size: what lmms-eval passes to every model; questions are asked one by one.

        Raises:
            NvlmError: see `open_generator`.
        """
        super().__init__()
        self.device = torch.device(device or "cpu")
        self._generate = open_generator(Path(pretrained), device or "cpu")

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answer requests: `args` end with doc_to_messages, generation settings, doc id, task and split."""
        answers = []
        for request in requests:
            # The question as a text comes first in 0.7.3, and is left out of the documented form.
            *_, doc_to_messages, generation, doc_id, task, split = request.args
            settings = GreedySettings.of(generation, task)
            messages = chat_messages(doc_to_messages(self.task_dict[task][split][doc_id]), task)
            answers.append(self._generate(messages, (), settings.max_new_tokens, settings.stop))
        return answers

    def loglikelihood(self, requests: list[Any]) -> NoReturn:
        """Refuse: engines give texts, not likelihoods."""
        raise UnsuitableError(
            "this task asks for likelihoods of given answers, and NVLM engines generate answers",
            hint="choose the generative form of the task (output_type generate_until)",
        )

    def generate_until_multi_round(self, requests: list[Any]) -> NoReturn:
        """Refuse: chats of several rounds are not adapted."""
        raise UnsuitableError("this task asks in several rounds, which the NVLM adapter does not do")


def model_manifest() -> ModelManifest:
    """What lmms-eval registers."""
    return ModelManifest(model_id=MODEL_NAME, chat_class_path=f"{__name__}.{NvlmChat.__name__}")
