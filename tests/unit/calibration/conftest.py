"""The example checkpoint's config and tokenizer, and small sets made in a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from nvlm_deploy.calibration import CalibrationSamples, load_samples
from nvlm_deploy.config.calibration import read_calibration_set
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer

Load = Callable[..., CalibrationSamples]


@pytest.fixture(scope="session")
def example(repository: Path) -> Path:
    return repository / "examples" / "nvlm-d-tiny"


@pytest.fixture(scope="session")
def config(example: Path) -> NvlmConfig:
    return NvlmConfig.from_directory(example)


@pytest.fixture(scope="session")
def tokenizer(example: Path) -> Tokenizer:
    return Tokenizer.from_directory(example)


@pytest.fixture(scope="session")
def builder(config: NvlmConfig, tokenizer: Tokenizer) -> PromptBuilder:
    return PromptBuilder(tokenizer, config)


@pytest.fixture
def load(config: NvlmConfig, tokenizer: Tokenizer, tmp_path: Path) -> Load:
    """Write a set with this source beside the test's other files, and load it."""

    def load_set(source: dict[str, Any], *overrides: str, **keys: Any) -> CalibrationSamples:
        data = {
            "name": "mine",
            "description": "of a test",
            "licence": "CC0-1.0",
            "source": source,
            "count": 4,
            "seed": 0,
            "max_tokens": 1024,
            **keys,
        }
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(data))
        spec, base_dir = read_calibration_set(str(path), overrides)
        return load_samples(spec, config, tokenizer, base_dir)

    return load_set


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of ten images, every one of its own colour, the third in a folder below; and a text."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for number in range(10):
        place = folder / "below" if number == 2 else folder
        Image.new("RGB", (224, 112), (20 * number, 0, 0)).save(place / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    return folder
