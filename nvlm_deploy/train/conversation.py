"""Exchanges about one generated document as token ids and labels."""

from __future__ import annotations

from collections.abc import Sequence

from nvlm_deploy.preprocess.answered import IGNORED_LABEL, AnsweredPrompt, build_answered
from nvlm_deploy.preprocess.messages import ContentPart, Message
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.synthetic.documents import Exchange

__all__ = ["IGNORED_LABEL", "tokenize_conversation"]


def tokenize_conversation(
    builder: PromptBuilder, exchanges: Sequence[Exchange], tiles: int
) -> AnsweredPrompt:
    """Tokenize one image of `tiles` tiles and the questions and answers about it."""
    messages: list[Message] = []
    for turn, exchange in enumerate(exchanges):
        messages.append({"role": "user", "content": _user_content(exchange.question, first=turn == 0)})
        messages.append({"role": "assistant", "content": exchange.answer})
    return build_answered(builder, messages[:-1], exchanges[-1].answer, [tiles])


def _user_content(question: str, first: bool) -> list[ContentPart]:
    text: ContentPart = {"type": "text", "text": question}
    return [{"type": "image"}, text] if first else [text]
