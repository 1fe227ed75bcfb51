"""Calibration sets: what a model is shown while it is quantized (`calibration/sets/*.yaml`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from nvlm_deploy.config.by_kind import Section, read_by_kind
from nvlm_deploy.config.catalog import find, load_yaml_model

DocumentKind = Literal["chart", "corners", "lines", "receipt", "sign", "table"]
_Text = Annotated[str, Field(min_length=1)]


def _as_list(value: Any) -> Any:
    # No union with str: every error's location would then have the name of a type in it.
    return [value] if isinstance(value, str) else value


class DocumentsSource(Section):
    """Generated documents with their questions; `kinds` is all that have questions unless it is given.

    Without images a document's text stands where its image would: the same questions as text only.
    """

    kind: Literal["documents"]
    # The held-out split measures answers, so nothing may be tuned on it.
    split: Literal["train"]
    kinds: list[DocumentKind] | None = Field(default=None, min_length=1)
    with_images: bool


class FolderSource(Section):
    """Every image in a local folder and the folders below it; several prompts are used in turn."""

    kind: Literal["folder"]
    path: _Text
    prompt: Annotated[list[_Text], Field(min_length=1), BeforeValidator(_as_list)]


class JsonlSource(Section):
    """One JSON object a line: a conversation or a question, and the paths of its images."""

    kind: Literal["jsonl"]
    path: _Text


class HuggingFaceSource(Section):
    """A data set read with the `datasets` package, at one revision; no image column means text only."""

    kind: Literal["huggingface"]
    dataset: _Text
    subset: _Text | None = Field(default=None, description="the data set's configuration, if it has several")
    split: _Text
    revision: _Text = Field(description="a commit, so that the set is the same next year")
    image_column: _Text | None
    question_column: _Text
    answer_column: _Text | None


Source: TypeAlias = DocumentsSource | FolderSource | JsonlSource | HuggingFaceSource

_SOURCES: dict[str, type[Source]] = {
    "documents": DocumentsSource,
    "folder": FolderSource,
    "jsonl": JsonlSource,
    "huggingface": HuggingFaceSource,
}


def _read_source(value: Any) -> Any:
    return read_by_kind(value, _SOURCES)


class ClassWeights(Section):
    """How likely a position of each class is among the inputs that AWQ and GPTQ see, relative to the others.

    Ranges are over all positions whatever their weight: what is not counted there would be clipped.
    """

    text: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    tag: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    visual: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    thumbnail: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check(self) -> ClassWeights:
        if not any((self.text, self.tag, self.visual, self.thumbnail)):
            raise ValueError("all weights are 0, so nothing would count")
        return self


class CalibrationSet(Section):
    """What a model is shown while it is quantized, and how much each class of tokens counts."""

    name: str = Field(min_length=1)
    description: str = Field(min_length=1)
    licence: str = Field(min_length=1, description="of the data: an SPDX name, or a sentence")
    source: Annotated[Source, BeforeValidator(_read_source)]
    count: int = Field(ge=1, description="samples; of a larger source, that many are drawn")
    seed: int = Field(ge=0, description="of the draw")
    max_tokens: int = Field(ge=1, description="of one sample; the model's own limit may be lower")
    class_weights: ClassWeights = ClassWeights()


def read_calibration_set(name_or_path: str, overrides: Sequence[str] = ()) -> tuple[CalibrationSet, Path]:
    """Read a shipped set by its name, or any set by the path of its YAML file.

    Returns:
        The set, and the directory that the relative paths in it start from: that of its file.

    Raises:
        UsageError: an unknown name, or an override that the schema refuses.
        NvlmError: the file is not what the schema says; the message names file and key.
    """
    spec = load_yaml_model("calibration set", name_or_path, CalibrationSet, overrides)
    return spec, find("calibration set", name_or_path).path.parent
