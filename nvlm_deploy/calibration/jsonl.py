"""Conversations from a JSONL file: one JSON object a line, image paths relative to the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.config.validation import explain
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.preprocess.images import ImageSource
from nvlm_deploy.preprocess.written_images import IMAGE_MARKER

_FORM_HINT = (
    'a line is {"image": FILE, "question": TEXT, "answer": TEXT} or '
    '{"images": [FILE, ...], "messages": [{"role": ..., "content": ...}, ...]}'
)


class _Record(BaseModel):
    """One line. Images are optional, and so is the answer to a question."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    image: str | None = None
    images: list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    question: str | None = None
    answer: str | None = None

    @model_validator(mode="after")
    def _check(self) -> _Record:
        if self.image is not None and self.images is not None:
            raise ValueError("both 'image' and 'images' are given: one of them is enough")
        if (self.messages is None) == (self.question is None):
            raise ValueError("needed: either 'messages' or 'question'")
        if self.messages is not None and self.answer is not None:
            raise ValueError("'answer' belongs to 'question'; in 'messages' it is the last message")
        return self

    def chat(self) -> list[dict[str, Any]]:
        if self.messages is not None:
            return list(self.messages)
        answer = [] if self.answer is None else [{"role": "assistant", "content": self.answer}]
        return [{"role": "user", "content": self.question}, *answer]

    def image_files(self) -> list[str]:
        return [self.image] if self.image is not None else list(self.images or ())


class JsonlConversations:
    """The conversations of one file; empty lines do not count."""

    def __init__(self, path: Path) -> None:
        """Check every line of `path`.

        Raises:
            NvlmError: the file is empty, or a line is malformed; the message names file and line.
        """
        self._path = path
        # Line number and place in the file: the lines themselves may take gigabytes.
        self._lines: list[tuple[int, int]] = []
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._conversation(number, line)
                    self._lines.append((number, offset))
                offset += len(line)
        if not self._lines:
            raise NvlmError(f"{path} has no lines", hint=_FORM_HINT)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int, /) -> Conversation:
        number, offset = self._lines[index]
        with self._path.open("rb") as file:
            file.seek(offset)
            return self._conversation(number, file.readline())

    def _conversation(self, number: int, line: bytes) -> Conversation:
        label = f"{self._path}:{number}"
        record = _parse(line, label)
        files = record.image_files()
        conversation = Conversation.of(label, place_images(record.chat(), len(files)), files)
        images = tuple(self._resolve(source, label) for source in conversation.images)
        return Conversation(label, conversation.prompt, conversation.answer, images)

    def _resolve(self, source: ImageSource, label: str) -> Path:
        if not isinstance(source, str) or not source:
            raise NvlmError(f"{label}: an image is {source!r}, not the path of a file")
        return self._path.parent / source


def place_images(messages: Sequence[Any], images: int) -> list[Any]:
    """Make image parts of `<image>` in the user's texts; if there is no place at all, images go first."""
    placed = [_with_parts(message) for message in messages]
    users = [i for i, message in enumerate(placed) if _is_user(message)]
    if images and users and not any(_has_image(placed[i]["content"]) for i in users):
        first = placed[users[0]]
        content = first["content"]
        text = [{"type": "text", "text": content}] if isinstance(content, str) else content
        placed[users[0]] = {**first, "content": [{"type": "image"}] * images + list(text)}
    return placed


def _with_parts(message: Any) -> Any:
    if (
        not _is_user(message)
        or not isinstance(message["content"], str)
        or IMAGE_MARKER not in message["content"]
    ):
        return message
    first, *others = message["content"].split(IMAGE_MARKER)
    parts = [{"type": "text", "text": first}] if first else []
    for text in others:
        parts.append({"type": "image"})
        if text:
            parts.append({"type": "text", "text": text})
    return {**message, "content": parts}


def _is_user(message: Any) -> bool:
    """Whether this is a user's message that can be looked into; the parser says what else is wrong."""
    return message.get("role") == "user" and isinstance(message.get("content"), (str, list))


def _has_image(content: str | list[Any]) -> bool:
    parts = [] if isinstance(content, str) else content
    return any(isinstance(part, dict) and part.get("type") == "image" for part in parts)


def _parse(line: bytes, label: str) -> _Record:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise NvlmError(f"{label} is not valid JSON: {error}", hint=_FORM_HINT) from None
    if not isinstance(data, dict):
        raise NvlmError(f"{label} is a {type(data).__name__}, not a JSON object", hint=_FORM_HINT)
    try:
        return _Record.model_validate(data)
    except ValidationError as error:
        explained = explain(error, _Record, label)
        raise NvlmError(explained.message, hint=explained.hint or _FORM_HINT) from None
