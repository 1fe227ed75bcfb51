"""What a reader makes of one record, and what a format is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from nvlm_deploy.preprocess.messages import ContentPart, Message

Part: TypeAlias = str | Path | bytes
"""Text, the path of an image, or the bytes of an image file."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One question.

    Attributes:
        id: unique in its data set.
        parts: the user's turn in order: texts and images.
        references: right answers as the metric takes them; empty where a test set keeps them secret.
        extra: further fields of a line that the metric reads, or that scores are grouped by.
    """

    id: str
    parts: tuple[Part, ...]
    references: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def messages(self) -> list[Message]:
        """The chat, with the released default system message."""
        return [{"role": "user", "content": [_content(part) for part in self.parts]}]

    def digest(self) -> str:
        """SHA-256 of the question, the references and the images: paths by name and size."""
        parts = [part if isinstance(part, str) else _image_facts(part) for part in self.parts]
        facts = [self.id, parts, self.references, dict(self.extra)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """Where a data set is.

    data: its file, or folder. images: the folder that image names in it are relative to. annotations: the
    answers, where they are in a file of their own.
    """

    data: Path
    images: Path
    annotations: Path | None = None


@dataclass(frozen=True, slots=True)
class DatasetFormat:
    """A format: what its files are, the metric that it is published with, and its reader."""

    name: str
    line: str
    metric: str | None
    read: Callable[[DatasetFiles], Sequence[Example]]


def shown(image: Path | bytes, text: str) -> tuple[Part, ...]:
    """An image, then text, as NVLM was evaluated."""
    return (image, text)


def _content(part: Part) -> ContentPart:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": part}


def _image_facts(image: Path | bytes) -> list[Any]:
    if isinstance(image, bytes):
        return [hashlib.sha256(image).hexdigest(), len(image)]
    return [image.name, image.stat().st_size if image.is_file() else None]
