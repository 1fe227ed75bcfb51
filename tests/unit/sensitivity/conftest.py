"""Losses of the tiny checkpoint in two round-to-nearest formats, measured once."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_deploy.config.sensitivity import SensitivityReport
from nvlm_deploy.pipeline.sensitivity import (
    SensitivityPlan,
    SensitivityRequest,
    plan_sensitivity,
    run_sensitivity,
)

FORMATS = ("int4-rtn", "int8")


@pytest.fixture(scope="session")
def plan(tiny_checkpoint: Path) -> SensitivityPlan:
    """A measurement of the tiny checkpoint on four prompts."""
    return plan_sensitivity(SensitivityRequest(tiny_checkpoint, FORMATS, count=4))


@pytest.fixture(scope="session")
def report(plan: SensitivityPlan) -> SensitivityReport:
    """What was measured."""
    return run_sensitivity(plan)
