"""Conversations with their answers as token ids and labels: one function for trainer and calibration.

What is asked is built by the prompt contract itself, so a model is trained on the ids that it is later sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_deploy.preprocess.messages import Message
from nvlm_deploy.preprocess.prompt import CrossPrompt, Prompt
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder

IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True, eq=False)
class AnsweredPrompt:
    """A sequence of S tokens: a prompt and the answer to it.

    Attributes:
        prompt: all before the last answer.
        input_ids: int64 [S].
        labels: int64 [S], the token itself where the loss counts and -100 elsewhere. It counts on what the
            assistant says in every turn and on the end of the turn (`<|im_end|>`, and in megatron mode the
            newline behind it), as in the released scripts; not on the system, the user, the images, nor the
            `<|im_start|>assistant` and newline that open a turn.
    """

    prompt: Prompt
    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    @property
    def visual_positions(self) -> npt.NDArray[np.int64]:
        """Where `input_ids` holds an image placeholder, int64 [V]."""
        return self.prompt.visual_positions

    @property
    def cross(self) -> CrossPrompt | None:
        """Where tiles go besides the sequence; an answer sees what the prompt's last token sees."""
        return self.prompt.cross

    def __len__(self) -> int:
        return len(self.input_ids)


def build_answered(
    builder: PromptBuilder,
    messages: Sequence[Message],
    answer: str | None,
    tiles_per_image: Sequence[int] = (),
) -> AnsweredPrompt:
    """Tokenize messages that end with the user's, and the assistant's answer to them if there is one.

    Args:
        messages, tiles_per_image: as in `PromptBuilder.build`.
        answer: the text behind the prompt; None leaves the sequence at its prompt.

    Raises:
        UsageError: the messages are malformed, or have another number of images.
    """
    prompt = builder.build(messages, tiles_per_image)
    input_ids = prompt.input_ids
    if answer is not None:
        tokenizer = builder.tokenizer
        closing = [tokenizer.eos_id, *(tokenizer.encode_text("\n") if builder.mode == "megatron" else ())]
        said = np.array([*tokenizer.encode_text(answer), *closing], dtype=np.int64)
        input_ids = np.concatenate([input_ids, said])
    roles = [str(message["role"]) for message in messages]
    if roles[0] != "system":
        roles = ["system", *roles]
    return AnsweredPrompt(prompt, input_ids, _labels(builder, input_ids, [*roles, "assistant"]))


def _labels(
    builder: PromptBuilder, input_ids: npt.NDArray[np.int64], roles: Sequence[str]
) -> npt.NDArray[np.int64]:
    # No text can spell the special token that starts a turn.
    starts = np.flatnonzero(input_ids == builder.tokenizer.turn_start_id)
    opening = np.array(builder.tokenizer.encode_text("assistant\n"), dtype=np.int64)
    labels = np.full_like(input_ids, IGNORED_LABEL)
    for role, start, end in zip(roles, starts, [*starts[1:], len(input_ids)], strict=True):
        if role == "assistant":
            turn = input_ids[start + 1 : end]
            # A text that begins with a newline may share a token with the opening; that token is said, too.
            shared = min(len(opening), len(turn))
            same = int(np.cumprod(turn[:shared] == opening[:shared]).sum())
            labels[start + 1 + same : end] = turn[same:]
    return labels
