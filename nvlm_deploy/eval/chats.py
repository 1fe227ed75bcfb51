"""Chats and generation settings as lmms-eval writes them, in this project's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.preprocess.messages import ContentPart, Message

_DEFAULT_TOKENS = 1024
# The stop string of tasks that name none; their answers would end with the first paragraph.
_PARAGRAPH = "\n\n"


@dataclass(frozen=True, slots=True)
class GreedySettings:
    """The length of an answer, and the strings that end it."""

    max_new_tokens: int
    stop: tuple[str, ...]

    @classmethod
    def of(cls, generation: Mapping[str, Any], task: str) -> GreedySettings:
        """Read a task's `generation_kwargs`; a blank line alone does not stop, as in lmms-eval's own models.

        Raises:
            UnsuitableError: the task asks for sampling or for a search with beams.
        """
        sampled = generation.get("do_sample", True) and (generation.get("temperature") or 0) > 0
        if sampled or (generation.get("num_beams") or 1) > 1:
            raise UnsuitableError(
                f"the task {task} asks for {'sampling' if sampled else 'beams'}, and answers here are greedy",
                hint="lmms-eval --gen_kwargs temperature=0,do_sample=False,num_beams=1",
            )
        until = generation.get("until") or []
        stop = [until] if isinstance(until, str) else until
        length = generation.get("max_new_tokens") or _DEFAULT_TOKENS
        return cls(int(length), tuple(text for text in stop if text and text != _PARAGRAPH))


def chat_messages(messages: Sequence[Mapping[str, Any]], task: str) -> list[Message]:
    """Messages with content parts `{"type": "text", "text"}` and `{"type": "image", "url"}`.

    Raises:
        UnsuitableError: a part is a video or a sound.
    """
    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [_part(part, task) for part in message["content"]],
        }
        for message in messages
    ]


def _part(part: Mapping[str, Any], task: str) -> ContentPart:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] == "image":
        return {"type": "image", "image": part["url"]}
    raise UnsuitableError(f"the task {task} shows a {part['type']}; NVLM takes images and text")
