"""Random checkpoints of all three variants, and data for them, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from tests.training import write_checkpoint, write_lines


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("variants")
    return {variant: write_checkpoint(variant, folder / variant) for variant in "DXH"}


@pytest.fixture(scope="session")
def builders(checkpoints: dict[str, Path]) -> dict[str, PromptBuilder]:
    return {
        variant: PromptBuilder(Tokenizer.from_directory(path), NvlmConfig.from_directory(path))
        for variant, path in checkpoints.items()
    }


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("lines"), 12)
