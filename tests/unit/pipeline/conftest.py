"""A build kit that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_deploy.export.tensorrt_llm import Parallel
from nvlm_deploy.pipeline.kit import KitOptions, write_kit
from nvlm_deploy.pipeline.plan import BuildRequest, plan_engine


@pytest.fixture(scope="session")
def kit_directory(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of two ranks for an H100, with probes; not to be changed."""
    output = tmp_path_factory.mktemp("kits") / "kit"
    plan = plan_engine(BuildRequest(tiny_checkpoint, "fp16", "h100-80gb", output))
    write_kit(plan, KitOptions(Parallel(tp=2), tiny_checkpoint))
    return output
