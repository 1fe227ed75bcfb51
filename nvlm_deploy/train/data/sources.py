"""From the sources of a blend to conversations, with the readers that calibration sets have, and two more."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.calibration.sources import ConversationSource, existing_source, open_source
from nvlm_deploy.config.blend import DataSource, DocumentsData, LlavaData, WebDatasetData, read_blend
from nvlm_deploy.config.training import DataSection
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.train.data.llava import LlavaConversations
from nvlm_deploy.train.data.webdataset import WebDatasetConversations


def blend_sources(data: DataSection, config_dir: Path) -> tuple[Sequence[DataSource], Path]:
    """The sources of a config, and the folder that their relative paths start from.

    Raises:
        UsageError: the config names none, or a blend file that does not exist.
        NvlmError: the blend file is malformed.
    """
    if data.sources is not None:
        return data.sources, config_dir
    if data.blend is None:
        raise UsageError("the config has no data", hint="--set data.blend=FILE.yaml, or data.sources")
    path = Path(data.blend).expanduser()
    return read_blend(path).sources, path.parent


def open_data_source(source: DataSource, tile_size: int, base_dir: Path) -> ConversationSource:
    """Open one source of a blend.

    Raises:
        NvlmError: it is not there, malformed as a whole, or empty; names the source.
        UnsuitableError: the Hugging Face `datasets` package is needed and not installed.
    """
    try:
        if isinstance(source, LlavaData):
            path = existing_source(base_dir, source.path, folder=False)
            images = existing_source(base_dir, source.images, folder=True) if source.images else path.parent
            return LlavaConversations(path, images)
        if isinstance(source, WebDatasetData):
            return WebDatasetConversations(source, existing_source(base_dir, source.path, folder=True))
        return open_source(source, tile_size, base_dir)
    except NvlmError as error:
        raise type(error)(f"the source '{source.name}': {error.message}", hint=error.hint) from None


@dataclass(frozen=True, slots=True)
class TrainingPart:
    """The conversations of a source that are trained on: all of them but those numbered in `held_out`."""

    source: ConversationSource
    length: int
    held_out: tuple[int, ...] = ()

    @classmethod
    def split(
        cls, source: ConversationSource, name: str, length: int, held_out: int, seed: int
    ) -> TrainingPart:
        """Draw `held_out` of the first `length` conversations, the same ones for the same seed and name.

        Raises:
            UsageError: nothing would be left.
        """
        if held_out >= length:
            raise UsageError(
                f"data.held_out is {held_out:,}, and the source '{name}' has {length:,} conversations",
                hint="hold out fewer",
            )
        return cls(
            source, length, tuple(sorted(random.Random(f"{seed}-{name}").sample(range(length), held_out)))
        )

    def __len__(self) -> int:
        return self.length - len(self.held_out)

    def __getitem__(self, index: int, /) -> Conversation:
        for held in self.held_out:
            if held > index:
                break
            index += 1
        return self.source[index]


def source_length(source: DataSource, opened: ConversationSource) -> int:
    """How many conversations one pass over a source has; generated ones have as many as are asked for."""
    return source.samples if isinstance(source, DocumentsData) else len(opened)
