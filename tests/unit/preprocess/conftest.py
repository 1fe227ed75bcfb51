"""A small checkpoint's config and tokenizer, and what the published code made of its images."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.preprocess import Tokenizer

TOKENIZER_FILE = Path(__file__).resolve().parents[2] / "data" / "preprocess" / "tokenizer.json"
SMALL = Tokenizer(TOKENIZER_FILE.read_text(encoding="utf-8"))
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_pad|>"]

TEXTS = st.lists(
    st.sampled_from(
        [*SPECIAL, "<|im_", "end|>", "<image>", "<", "|", ">", "\n", " ", "a\u0301", "é", "😀", "the"]
    )
    | st.text(max_size=8),
    max_size=8,
).map("".join)


@dataclass(frozen=True)
class Reference:
    """`expected.json` beside the images it speaks of."""

    directory: Path
    samples: list[dict[str, Any]]
    text_only: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> Reference:
        raw = json.loads((directory / "expected.json").read_text(encoding="utf-8"))
        return cls(directory, raw["samples"], raw["text_only"])

    def image(self, name: str) -> Path:
        return self.directory / "images" / name


@pytest.fixture(scope="session")
def data_dir(repository: Path) -> Path:
    return repository / "tests" / "data" / "preprocess"


@pytest.fixture(scope="session")
def config(data_dir: Path) -> NvlmConfig:
    return NvlmConfig.from_directory(data_dir)


@pytest.fixture(scope="session")
def tokenizer(data_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(data_dir)


@pytest.fixture(scope="session", params=["three bundled samples", "all ten samples"])
def reference(request: pytest.FixtureRequest) -> Reference:
    """Three samples are in the repository; all ten are used where the whole reference is present."""
    bundled = request.param == "three bundled samples"
    return Reference.read(request.getfixturevalue("data_dir" if bundled else "golden_dir"))


@pytest.fixture(scope="session")
def qwen2_text(shared_data_dir: Path) -> str:
    """The real vocabulary, as the text of a tokenizer.json."""
    with gzip.open(shared_data_dir / "qwen2-tokenizer.json.gz", "rt", encoding="utf-8") as file:
        return file.read()


@pytest.fixture(scope="session")
def qwen2(qwen2_text: str) -> Tokenizer:
    return Tokenizer(qwen2_text)


@pytest.fixture(scope="session")
def config_72b(shared_data_dir: Path) -> NvlmConfig:
    return NvlmConfig.from_file(shared_data_dir / "nvlm-d-72b.config.json")
