"""Conversations about one image as token ids and labels, by the very prompt contract of inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_deploy.preprocess import ContentPart, Message, Prompt, PromptBuilder
from nvlm_deploy.synthetic.documents import Exchange

IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class TokenizedConversation:
    """A training sequence of S tokens.

    `input_ids` int64 [S]; `labels` int64 [S], the token itself where the loss counts (assistant's words and
    the end of the turn) and -100 elsewhere; `prompt` is all before the last answer.
    """

    prompt: Prompt

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    @property
    def visual_positions(self) -> npt.NDArray[np.int64]:
        return self.prompt.visual_positions


def tokenize_conversation(
    builder: PromptBuilder, exchanges: Sequence[Exchange], tiles: int
) -> TokenizedConversation:
    """Tokenize one image of `tiles` tiles and the questions and answers about it.

    The loss counts on the assistant's content and the `<|im_end|>` after it (Megatron NVLM scripts).
    """
    messages: list[Message] = []
    spans: list[tuple[int, int]] = []
    for turn, exchange in enumerate(exchanges):
        messages.append({"role": "user", "content": _user_content(exchange.question, first=turn == 0)})
        start = len(builder.build(messages, [tiles]).input_ids)
        answer = [*builder.tokenizer.encode_text(exchange.answer), builder.tokenizer.eos_id]
        spans.append((start, start + len(answer)))
        messages.append({"role": "assistant", "content": exchange.answer})
    prompt = builder.build(messages[:-1], [tiles])
    input_ids = np.concatenate([prompt.input_ids, answer])
    labels = np.full_like(input_ids, IGNORED_LABEL)
    for begin, end in spans:
        labels[begin:end] = input_ids[begin:end]
    return TokenizedConversation(prompt, input_ids, labels)


def _user_content(question: str, first: bool) -> list[ContentPart]:
    text: ContentPart = {"type": "text", "text": question}
    return [{"type": "image"}, text] if first else [text]
