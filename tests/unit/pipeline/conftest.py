"""A build kit that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_deploy.pipeline.kit import KitOptions, write_kit
from nvlm_deploy.pipeline.plan import BuildRequest, plan_engine
from nvlm_deploy.planner import Parallel


@pytest.fixture(scope="session")
def kit_directory(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of two ranks for an H100, with probes; not to be changed."""
    output = tmp_path_factory.mktemp("kits") / "kit"
    request = BuildRequest(tiny_checkpoint, "fp16", "h100-80gb", output, parallel=Parallel(tp=2))
    write_kit(plan_engine(request), KitOptions(tiny_checkpoint))
    return output
