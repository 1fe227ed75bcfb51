"""Conversations from a data set of the Hugging Face hub, or from a local folder in its form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.config.calibration import HuggingFaceSource
from nvlm_deploy.errors import NvlmError, UnsuitableError, did_you_mean
from nvlm_deploy.preprocess.images import ImageSource

if TYPE_CHECKING:
    from datasets import Dataset


class HuggingFaceConversations:
    """One question, with its answer and images if the data has them, per row."""

    def __init__(self, source: HuggingFaceSource, base_dir: Path) -> None:
        """Fetch the data set if it is not there yet.

        Raises:
            UnsuitableError: the `datasets` package is not installed.
            NvlmError: the data set cannot be loaded, has no such column, or has no rows.
        """
        self._source = source
        wanted = (source.image_column, source.question_column, source.answer_column)
        columns = [column for column in wanted if column is not None]
        loaded = _load(source, base_dir)
        for column in columns:
            if column not in loaded.column_names:
                raise NvlmError(
                    f"{source.dataset} has no column '{column}'",
                    hint=did_you_mean(column, loaded.column_names),
                )
        if not len(loaded):
            raise NvlmError(f"{source.dataset} has no rows in its split '{source.split}'")
        # Reading a row decodes all of its columns.
        self._rows = loaded.select_columns(columns)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Conversation:
        source, row = self._source, self._rows[index]
        label = f"{source.dataset}[{index}]"
        images = _images(row[source.image_column], label) if source.image_column else []
        question = _text(row[source.question_column], f"{label}.{source.question_column}")
        parts: list[dict[str, Any]] = [{"type": "image"} for _ in images]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        ]
        if source.answer_column:
            answer = _text(row[source.answer_column], f"{label}.{source.answer_column}")
            messages.append({"role": "assistant", "content": answer})
        return Conversation.of(label, messages, images)


def _load(source: HuggingFaceSource, base_dir: Path) -> Dataset:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UnsuitableError(
            f"reading {source.dataset} needs the package datasets, which is not installed",
            hint="pip install 'nvlm-deploy[calibration]', or pip install 'datasets>=3'",
        ) from None
    local = base_dir / Path(source.dataset).expanduser()
    place = str(local) if local.is_dir() else source.dataset
    try:
        return load_dataset(place, source.subset, split=source.split, revision=source.revision)
    except Exception as error:  # the hub, the network and every file format raise their own
        raise NvlmError(
            f"{source.dataset} cannot be loaded: {type(error).__name__}: {error}",
            hint="check source.dataset, subset, split and revision, and the network",
        ) from None


def _images(cell: Any, label: str) -> list[ImageSource]:
    """Images of one cell: an image, a list of them, or nothing; undecoded ones are bytes or a path."""
    if cell is None:
        return []
    if isinstance(cell, list):
        return [image for each in cell for image in _images(each, label)]
    if isinstance(cell, str):
        raise NvlmError(f"{label}: the image column holds the text {cell!r}", hint="name a column of images")
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
        if not cell:
            raise NvlmError(f"{label}: an image has neither bytes nor a path")
    image: ImageSource = cell
    return [image]


def _text(cell: Any, label: str) -> str:
    """The text of one cell; of several right answers, the first."""
    if isinstance(cell, list) and cell:
        cell = cell[0]
    if not isinstance(cell, str):
        raise NvlmError(
            f"{label} is {cell!r}, not a text", hint="name a column of texts, or of lists of texts"
        )
    return cell
