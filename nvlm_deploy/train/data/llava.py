"""Conversations in LLaVA's form: one JSON list, or one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.calibration.jsonl import place_images
from nvlm_deploy.errors import NvlmError, did_you_mean

FORM_HINT = (
    'a record is {"id": ..., "image": FILE or [FILE, ...], "conversations": '
    '[{"from": "human", "value": TEXT}, {"from": "gpt", "value": TEXT}, ...]}'
)
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class LlavaConversations:
    """The records of one file. Each is checked when it is read: the public files have bad ones in them."""

    def __init__(self, path: Path, images: Path) -> None:
        """Open `path`, a .json with one list or a .jsonl; files of images are looked for in `images`.

        Raises:
            NvlmError: the file is no JSON list, or empty.
        """
        self._path, self._images = path, images
        # As text: a million parsed records would take ten times the memory.
        self._records = _read_lines(path) if path.suffix == ".jsonl" else _read_list(path)
        if not self._records:
            raise NvlmError(f"{path} has no records", hint=FORM_HINT)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Conversation:
        """Raises NvlmError if the record is malformed; the message names it."""
        label = f"{self._path}[{index}]"
        try:
            record = json.loads(self._records[index])
        except ValueError as error:
            raise NvlmError(f"{label} is not valid JSON: {error}", hint=FORM_HINT) from None
        return llava_conversation(record, label, self._images)


def llava_conversation(record: Any, label: str, images: Path | None = None) -> Conversation:
    """Read one record; its `id` becomes part of the label.

    Args:
        images: where paths of images start; None if the caller fills the images in.

    Raises:
        NvlmError: it is malformed.
    """
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        raise NvlmError(f"{label} has no list of conversations", hint=FORM_HINT)
    if "id" in record:
        label = f"{label} (id {record['id']})"
    named = record.get("image", record.get("images")) or []
    files = named if isinstance(named, list) else [named]
    if not all(isinstance(file, str) and file for file in files):
        raise NvlmError(f"{label}: image is {named!r}", hint=FORM_HINT)
    messages = [_message(turn, label) for turn in record["conversations"]]
    sources = [images / file for file in files] if images is not None else files
    return Conversation.of(label, place_images(messages, len(files)), sources)


def _message(turn: Any, label: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
        raise NvlmError(f"{label}: a turn is {turn!r}", hint=FORM_HINT)
    role = _ROLES.get(str(turn.get("from")))
    if role is None:
        raise NvlmError(f"{label}: a turn is from {turn.get('from')!r}", hint=did_you_mean("", _ROLES))
    return {"role": role, "content": turn["value"]}


def _read_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines() if line.strip()]


def _read_list(path: Path) -> list[bytes]:
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise NvlmError(f"{path} is not valid JSON: {error}", hint=FORM_HINT) from None
    if not isinstance(data, list):
        raise NvlmError(f"{path} holds a {type(data).__name__}, not a list", hint=FORM_HINT)
    return [json.dumps(record, ensure_ascii=False).encode() for record in data]
