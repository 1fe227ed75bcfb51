"""Where conversations come from: generated documents, a folder of images, JSONL, the Hugging Face hub.

A source is opened, which finds what is wrong with it as a whole, and then asked for single conversations,
which are read anew each time: nothing but names and places in files is kept.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.calibration.huggingface import HuggingFaceConversations
from nvlm_deploy.calibration.jsonl import JsonlConversations
from nvlm_deploy.config.calibration import DocumentsSource, FolderSource, JsonlSource, Source
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.synthetic.documents import Exchange, document

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# The generator has no end; this many pages are enough to draw from.
_DOCUMENTS = 1 << 20
_MAX_QUESTIONS = 4
# What the trainer asks, too: the long answer among the short ones.
TRANSCRIBE = "Read the text."

_RELATIVE_HINT = "a relative path starts at the folder of the YAML file that names it"


class ConversationSource(Protocol):
    """A fixed number of conversations; the same index gives the same conversation."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Conversation: ...


def open_source(source: Source, tile_size: int, base_dir: Path) -> ConversationSource:
    """Open a source.

    Args:
        source: the `source` of a calibration set.
        tile_size: side of a tile in pixels, which generated documents are drawn for.
        base_dir: where relative paths start.

    Raises:
        NvlmError: a path is missing, a folder has no image, a JSONL file is malformed, a column is missing.
        UnsuitableError: the Hugging Face `datasets` package is needed and not installed.
    """
    if isinstance(source, DocumentsSource):
        return DocumentConversations(source, tile_size)
    if isinstance(source, FolderSource):
        return FolderConversations(existing_source(base_dir, source.path, folder=True), source.prompt)
    if isinstance(source, JsonlSource):
        return JsonlConversations(existing_source(base_dir, source.path, folder=False))
    return HuggingFaceConversations(source, base_dir)


class DocumentConversations:
    """Generated pages: some of their questions, and at the end all of their text."""

    def __init__(self, source: DocumentsSource, tile_size: int) -> None:
        self._source, self._tile_size = source, tile_size

    def __len__(self) -> int:
        return _DOCUMENTS

    def __getitem__(self, index: int, /) -> Conversation:
        page = document(self._source.split, index, self._tile_size, tuple(self._source.kinds or ()))
        rng = random.Random(f"calibration-{index}")
        asked = rng.sample(page.exchanges, min(_MAX_QUESTIONS, len(page.exchanges)))
        asked.append(Exchange(TRANSCRIBE, page.transcript))
        messages: list[dict[str, Any]] = []
        for exchange in asked:
            messages.append(_user(exchange.question))
            messages.append({"role": "assistant", "content": exchange.answer})
        label = f"document {index} ({page.kind})"
        if not self._source.with_images:
            messages[0] = _user(f"{page.transcript}\n{asked[0].question}")
            return Conversation.of(label, messages)
        messages[0] = _user_with_image(asked[0].question)
        return Conversation.of(label, messages, [page.image])


class FolderConversations:
    """Every image of a folder with one of the prompts; there are no answers."""

    def __init__(self, folder: Path, prompts: Sequence[str]) -> None:
        """Raises NvlmError if there is no image in `folder`."""
        self._prompts = prompts
        self._files = sorted(
            (path for path in folder.rglob("*") if _is_image(path.relative_to(folder)) and not path.is_dir()),
            key=lambda path: path.relative_to(folder).as_posix(),
        )
        if not self._files:
            suffixes = ", ".join(IMAGE_SUFFIXES)
            raise NvlmError(f"the folder {folder} has no images", hint=f"files that count end in {suffixes}")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int, /) -> Conversation:
        file = self._files[index]
        prompt = self._prompts[index % len(self._prompts)]
        return Conversation.of(str(file), [_user_with_image(prompt)], [file])


def _is_image(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def existing_source(base_dir: Path, path: str, *, folder: bool) -> Path:
    """Return the folder or file at `path`, relative to `base_dir`; NvlmError if it is not there."""
    found = base_dir / Path(path).expanduser()
    if not found.exists():
        raise NvlmError(f"source.path is '{path}': {found} does not exist", hint=_RELATIVE_HINT)
    if found.is_dir() != folder:
        kind = "no folder" if folder else "a folder, not a file"
        raise NvlmError(f"source.path is '{path}': {found} is {kind}")
    return found


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _user_with_image(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
