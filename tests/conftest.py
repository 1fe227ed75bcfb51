"""What all tiers share: where the reference data is, which tests can run here, how long one may take."""

from __future__ import annotations

import os
from pathlib import Path

# Small models gain nothing from more threads, and the machine may be shared.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TIER_TIMEOUT_S = {"unit": 30, "integration": 300}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for tier, seconds in TIER_TIMEOUT_S.items():
            if tier in item.path.parts and item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(seconds))
        if item.get_closest_marker("gpu") and not _cuda_is_there():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and this machine has none"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """A small checkpoint in the released layout with what the published code makes of its images."""
    return _reference("NVLM_GOLDEN_DIR", "golden/golden-nvlm-d")


@pytest.fixture(scope="session")
def shared_data_dir() -> Path:
    """The released model's config and index, and the real vocabulary."""
    return _reference("NVLM_SHARED_DATA_DIR", "data")


def _reference(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / default))
    if not path.is_dir():
        pytest.skip(f"the reference data is not here: {path} does not exist; set {variable}")
    return path


def _cuda_is_there() -> bool:
    import torch

    return torch.cuda.is_available()
