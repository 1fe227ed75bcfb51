"""What all tiers share: where the reference data is, which tests can run here, how long one may take."""

from __future__ import annotations

import os
from pathlib import Path

# Small models gain nothing from more threads, and the machine may be shared.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from nvlm_deploy.synthetic.shapes import ModelShape

REPOSITORY = Path(__file__).resolve().parents[1]
# Against tests that hang, on a machine that may be busy with something else.
TIER_TIMEOUT_S = {"unit": 120, "integration": 600}
TINY_SHAPE = ModelShape(
    tile_size=56,
    vision_hidden=32,
    vision_intermediate=64,
    vision_layers=2,
    vision_heads=2,
    hidden=64,
    intermediate=96,
    layers=2,
    heads=4,
    kv_heads=2,
    vocab_size=320,
    max_positions=512,
    bos_token_id=256,
    eos_token_id=258,
)


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


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete NVLM-D checkpoint with random weights in six shards, half a megabyte; not to be changed."""
    from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
    from nvlm_deploy.synthetic.shapes import released_style_config

    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_random_checkpoint(released_style_config(TINY_SHAPE), directory, max_shard_bytes=100_000)
    return directory


def _reference(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / default))
    if not path.is_dir():
        pytest.skip(f"the reference data is not here: {path} does not exist; set {variable}")
    return path


def _cuda_is_there() -> bool:
    import torch

    return torch.cuda.is_available()
