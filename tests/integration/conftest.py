"""Bundles and broken checkpoints for whole runs of the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_deploy.cli.main import run

BuildArguments = Callable[..., list[str]]


@pytest.fixture(scope="session")
def engine_arguments() -> BuildArguments:
    """Makes the command line that builds an INT4 engine."""

    def make(checkpoint: Path, output: Path, *more: str) -> list[str]:
        names = ["--recipe", "int4-rtn", "--target", "cpu-x86"]
        return ["engine", str(checkpoint), *names, "--no-verify", "-o", str(output), *more]

    return make


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be broken."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def tiny_bundle(
    tiny_checkpoint: Path, engine_arguments: BuildArguments, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The INT4 engine of the tiny checkpoint; not to be changed."""
    output = tmp_path_factory.mktemp("bundles") / "tiny"
    assert run(engine_arguments(tiny_checkpoint, output)) == 0
    return output


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be broken."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
