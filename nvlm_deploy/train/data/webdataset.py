"""Tar shards in the WebDataset form, with Megatron Energon's `.nv-meta` beside them or without.

A sample is the neighbouring files of one name up to its first dot: `0001.jpg`, `0001.json`. Shards are
indexed once, by their headers, and samples are then read by place: so their order can be any, and training
goes on in the middle of an epoch without reading what comes before.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.calibration.jsonl import place_images
from nvlm_deploy.config.blend import CAPTION_PROMPT, WebDatasetData
from nvlm_deploy.config.yaml_file import parse_mapping
from nvlm_deploy.errors import NvlmError, did_you_mean
from nvlm_deploy.train.data.llava import llava_conversation

IMAGE_PARTS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
_META = ".nv-meta"
_KINDS = ("CaptioningSample", "VQASample", "OCRSample", "CrudeSample")
_FIELD = re.compile(r"\[([^\[\]]+)\]")
_FORM_HINT = (
    "a sample has an image (.jpg, .png, ...) and a .json with conversations, messages, or question and "
    "answer, or a .txt with a caption"
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One sample: its shard, its name, and the extension, place and size of each of its files."""

    shard: int
    key: str
    parts: tuple[tuple[str, int, int], ...]


class WebDatasetConversations:
    """The samples of a folder of shards, in the order of shards and within them."""

    def __init__(self, source: WebDatasetData, folder: Path) -> None:
        """Index the shards of `folder`.

        Raises:
            NvlmError: there are no shards, one is broken, or `.nv-meta` asks for what is not supported.
        """
        self._prompts = source.prompts
        self._kind, self._fields = _read_dataset(folder)
        self._shards = _find_shards(folder, source.split)
        self._entries = [entry for i, path in enumerate(self._shards) for entry in _index(i, path)]
        if not self._entries:
            raise NvlmError(f"{folder} has no samples in its shards", hint=_FORM_HINT)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int, /) -> Conversation:
        """Raises NvlmError if the sample is malformed; the message names shard and sample."""
        entry = self._entries[index]
        path = self._shards[entry.shard]
        label = f"{path}:{entry.key}"
        with path.open("rb") as file:
            parts = {name: _read_part(file, place, size) for name, place, size in entry.parts}
        if self._fields:
            values = {field: _look_up(parts, way, label) for field, way in self._fields.items()}
            return self._mapped(values, index, label)
        return self._crude(parts, index, label)

    def _mapped(self, values: Mapping[str, Any], index: int, label: str) -> Conversation:
        """A sample whose fields `dataset.yaml` names."""
        if self._kind == "CaptioningSample":
            return self._asked("", values.get("caption"), [values["image"]], index, label)
        if self._kind == "OCRSample":
            return self._asked("", values.get("text"), [values["image"]], index, label)
        return self._asked(values.get("context"), values.get("answers"), [values["image"]], index, label)

    def _crude(self, parts: Mapping[str, bytes], index: int, label: str) -> Conversation:
        """A sample that is read by what it has."""
        images = [parts[name] for name in parts if name.rpartition(".")[2].lower() in IMAGE_PARTS]
        if "json" not in parts:
            return self._asked("", _look_up(parts, "txt", label), images, index, label)
        record = _parse(parts["json"], label)
        if isinstance(record, dict) and "conversations" in record:
            names = ["image"] * len(images)
            chat = llava_conversation({**record, "image": names}, label)
            return Conversation(chat.label, chat.prompt, chat.answer, tuple(images))
        if isinstance(record, dict) and isinstance(record.get("messages"), list):
            return Conversation.of(label, place_images(record["messages"], len(images)), images)
        if not isinstance(record, dict):
            raise NvlmError(f"{label}.json holds no object", hint=_FORM_HINT)
        answer = record.get("answer", record.get("caption"))
        return self._asked(record.get("question", ""), answer, images, index, label)

    def _asked(self, question: Any, answer: Any, images: list[Any], index: int, label: str) -> Conversation:
        """One question and its answer; of several right answers, the first."""
        if isinstance(answer, list) and answer:
            answer = answer[0]
        if not isinstance(question, str) or not isinstance(answer, str):
            raise NvlmError(f"{label}: the question is {question!r}, the answer {answer!r}", hint=_FORM_HINT)
        prompts = self._prompts or ["{}" if question else CAPTION_PROMPT]
        text = prompts[index % len(prompts)].replace("{}", question)
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return Conversation.of(label, place_images(messages, len(images)), images)


def _find_shards(folder: Path, split: str) -> list[Path]:
    """Shards of a split, or all there are, sorted by name."""
    splits = folder / _META / "split.yaml"
    if splits.is_file():
        data = parse_mapping(splits.read_text(encoding="utf-8"), str(splits))
        parts = data.get("split_parts", {})
        if split not in parts:
            raise NvlmError(f"{splits} has no part '{split}'", hint=did_you_mean(split, parts))
        excluded = set(data.get("exclude") or ())
        names = [name for text in parts[split] for name in _expand(text) if name not in excluded]
        shards = [folder / name for name in names]
    else:
        shards = sorted(folder.rglob("*.tar"))
    missing = [path for path in shards if not path.is_file()]
    if missing or not shards:
        what = f"the shard {missing[0]} does not exist" if missing else f"{folder} has no .tar files"
        raise NvlmError(what, hint="shards are .tar files in the WebDataset form")
    return shards


def _expand(text: str) -> list[str]:
    """`a_{000..002}.tar` -> the three names."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if found is None:
        return [text]
    first, last, width = int(found[1]), int(found[2]), len(found[1])
    names = [f"{text[: found.start()]}{n:0{width}}{text[found.end() :]}" for n in range(first, last + 1)]
    return [each for name in names for each in _expand(name)]


def _read_dataset(folder: Path) -> tuple[str, dict[str, str]]:
    """The kind of sample and its fields; no fields if samples are read by what they have."""
    path = folder / _META / "dataset.yaml"
    if not path.is_file():
        return "CrudeSample", {}
    data = parse_mapping(path.read_text(encoding="utf-8"), str(path))
    if "sample_loader" in data or "part_filter" in data:
        raise NvlmError(
            f"{path} names code of its own (sample_loader), which is never run",
            hint="use a field_map, or remove dataset.yaml so that samples are read by what they have",
        )
    kind = str(data.get("sample_type", data).get("__class__", "CrudeSample"))
    kind = kind.replace("Webdataset", "Sample").replace("WebdatasetFactory", "Sample")
    if kind not in _KINDS:
        raise NvlmError(f"{path}: samples are {kind}", hint="supported: " + ", ".join(_KINDS))
    fields = {} if kind == "CrudeSample" else dict(data.get("field_map") or {})
    if fields and "image" not in fields:
        raise NvlmError(f"{path}: field_map has no image", hint="for example image: jpg")
    return kind, fields


def _index(shard: int, path: Path) -> list[_Entry]:
    entries: list[_Entry] = []
    key, parts = "", list[tuple[str, int, int]]()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                this = f"{folder}/{stem}" if folder else stem
                if this != key and parts:
                    entries.append(_Entry(shard, key, tuple(parts)))
                    parts = []
                key = this
                parts.append((extension, member.offset_data, member.size))
    except (tarfile.TarError, OSError) as error:
        raise NvlmError(
            f"the shard {path} cannot be read: {error}", hint="shards are plain .tar files"
        ) from None
    if parts:
        entries.append(_Entry(shard, key, tuple(parts)))
    return entries


def _read_part(file: Any, place: int, size: int) -> bytes:
    file.seek(place)
    return bytes(file.read(size))


def _look_up(parts: Mapping[str, bytes], way: str, label: str) -> Any:
    """Find a field: `jpg`, `txt`, `json[answers][0]`, or the first of `jpg;png` that is there."""
    for alternative in way.split(";"):
        name = alternative.partition("[")[0]
        if name not in parts:
            continue
        if name.rpartition(".")[2].lower() in IMAGE_PARTS:
            return parts[name]
        if name.rpartition(".")[2] != "json":
            return _text(parts[name], f"{label}.{name}")
        value = _parse(parts[name], label)
        for step in _FIELD.findall(alternative):
            try:
                value = value[int(step)] if isinstance(value, list) else value[step]
            except (KeyError, IndexError, TypeError, ValueError):
                raise NvlmError(f"{label}: there is no {alternative}") from None
        return value
    raise NvlmError(f"{label} has no part {way}; it has {', '.join(parts)}", hint=_FORM_HINT)


def _parse(data: bytes, label: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NvlmError(f"{label}.json is not valid JSON: {error}") from None


def _text(data: bytes, label: str) -> str:
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise NvlmError(f"{label} is not valid UTF-8: {error}") from None
