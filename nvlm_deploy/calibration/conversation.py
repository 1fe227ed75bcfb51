"""One conversation of a calibration set: checked messages, the last answer, and where its images are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.preprocess.images import ImageSource
from nvlm_deploy.preprocess.messages import Message, Turn, gather_images, parse_messages


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """A chat that a model would be asked to go on with, and the answer if the data has one.

    Attributes:
        label: how errors call it: a file with a line, an image, a row.
        prompt: the messages up to the last one of the user.
        answer: the assistant's text after `prompt`, or None.
        images: the sources of all images, in the order of their places in `prompt`.
    """

    label: str
    prompt: tuple[Message, ...]
    answer: str | None
    images: tuple[ImageSource, ...]

    @property
    def has_text(self) -> bool:
        """Whether somebody says something: a user in words, or the assistant."""
        asked = (_text(message["content"]) for message in self.prompt if message["role"] == "user")
        return bool((self.answer or "").strip()) or any(text.strip() for text in asked)

    @classmethod
    def of(
        cls, label: str, messages: Sequence[Mapping[str, Any]], images: Sequence[ImageSource] = ()
    ) -> Conversation:
        """Check messages that end with the user or with one answer of the assistant.

        Raises:
            NvlmError: a message is malformed, none is the user's, the last two are the assistant's, or there
                are more or fewer images than image parts. The message starts with `label`.
        """
        chat = cast("Sequence[Message]", messages)
        try:
            turns = _parse(chat)
            answered = turns[-1].role == "assistant"
            prompt = tuple(chat[:-1] if answered else chat)
            sources = gather_images(prompt, images)
        except UsageError as error:
            raise NvlmError(f"{label}: {error.message}", hint=error.hint) from None
        # Only a user's message can hold anything but text, which the parser has seen to.
        answer = "".join(cast("tuple[str, ...]", turns[-1].parts)) if answered else None
        return cls(label, prompt, answer, sources)


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)


def _parse(messages: Sequence[Message]) -> tuple[Turn, ...]:
    # The parser wants a chat that awaits an answer; one that has its answer gets a question after it.
    turns = parse_messages([*messages, {"role": "user", "content": ""}])[:-1]
    roles = [turn.role for turn in turns]
    if "user" not in roles:
        raise UsageError(
            "the conversation has no message of the user",
            hint='needed: a message {"role": "user", "content": ...}',
        )
    if roles[-2:] == ["assistant", "assistant"]:
        raise UsageError(
            f"messages[{len(roles) - 2}] and messages[{len(roles) - 1}] are both the assistant's",
            hint="join them, or put the user's message between them",
        )
    return turns
