"""Blends: what a model is trained on, source by source, and how much of each (`sources` of a YAML file)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from nvlm_deploy.config.by_kind import Section, read_by_kind
from nvlm_deploy.config.calibration import DocumentsSource, HuggingFaceSource, JsonlSource
from nvlm_deploy.config.catalog import CatalogFile, read_yaml, validate
from nvlm_deploy.config.numbers import Number
from nvlm_deploy.errors import UsageError

_Text = Annotated[str, Field(min_length=1)]
# What the released evaluation asks about captions.
CAPTION_PROMPT = "Provide a one-sentence caption for provided image."


class _Weighted(Section):
    """What every source of a blend has.

    `weight` is relative to the others': how likely a sample is drawn from here. Each source is read in an
    order of its own, shuffled anew when all of it was shown.
    """

    name: _Text
    weight: Number = Field(default=1.0, gt=0, allow_inf_nan=False)


class DocumentsData(DocumentsSource, _Weighted):
    """Generated documents; `samples` is how many there are."""

    samples: int = Field(default=1 << 20, ge=1)


class JsonlData(JsonlSource, _Weighted):
    """One JSON object a line: a conversation or a question, and the paths of its images."""


class HuggingFaceData(HuggingFaceSource, _Weighted):
    """A data set read with the `datasets` package."""


class LlavaData(_Weighted):
    """LLaVA-style JSON (one list) or JSONL: `{"id", "image", "conversations": [{"from", "value"}, ...]}`."""

    kind: Literal["llava"]
    path: _Text
    images: _Text | None = Field(default=None, description="the folder that `image` starts at")


class WebDatasetData(_Weighted):
    """Tar shards, as Megatron Energon writes them: a folder with `.nv-meta`, or just shards in it.

    `split` is a part of `.nv-meta/split.yaml`. `prompts`: what is asked; `{}` stands for the sample's own
    question, and captions have none. Of several, each sample gets one.
    """

    kind: Literal["webdataset"]
    path: _Text
    split: _Text = "train"
    prompts: list[_Text] | None = Field(default=None, min_length=1)


DataSource: TypeAlias = DocumentsData | JsonlData | HuggingFaceData | LlavaData | WebDatasetData

_KINDS: dict[str, type[Section]] = {
    "documents": DocumentsData,
    "jsonl": JsonlData,
    "huggingface": HuggingFaceData,
    "llava": LlavaData,
    "webdataset": WebDatasetData,
}


def _read(value: Any) -> Any:
    return read_by_kind(value, _KINDS)


Sources: TypeAlias = list[Annotated[DataSource, BeforeValidator(_read)]]


class Blend(Section):
    """A blend file."""

    name: _Text
    description: _Text
    sources: Sources = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Blend:
        check_names(self.sources)
        return self


def check_names(sources: Sequence[DataSource]) -> None:
    """Raise a ValueError if two sources have one name: losses are counted by it."""
    names = [source.name for source in sources]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"two sources are called '{doubled[0]}'")


def read_blend(path: Path) -> Blend:
    """Read a blend file.

    Raises:
        UsageError: there is none at `path`.
        NvlmError: it is not what the schema says; the message names file and key.
    """
    if not path.is_file():
        raise UsageError(f"the blend file {path} does not exist", hint="set data.blend, or data.sources")
    return validate(read_yaml(CatalogFile(path, str(path))), Blend, str(path))
