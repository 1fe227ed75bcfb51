"""Wheel and sdist have the catalogs in them, and the installed package finds them by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

# Earlier ones do not know the licence expressions of pyproject.toml.
MIN_SETUPTOOLS = 77
SOURCES = ("nvlm_deploy", "quantization", "calibration", "engines", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
LIST = """
import nvlm_deploy
from nvlm_deploy.config.catalog import find, list_names
print(nvlm_deploy.__file__)
print(*list_names("recipe"))
print(*list_names("target"))
print(*list_names("calibration set"))
print(find("recipe", "int4-rtn").path)
"""


@pytest.fixture(scope="module")
def distributions(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and the wheel of a copy of the source tree."""
    if int(metadata.version("setuptools").split(".")[0]) < MIN_SETUPTOOLS:
        pytest.skip(f"builds with the installed setuptools, which is older than {MIN_SETUPTOOLS}")
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        path = repository / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    output = tmp_path_factory.mktemp("dist")
    for hook in ("build_sdist", "build_wheel"):
        command = [sys.executable, "-c", BUILD, hook, str(output)]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
    return output


def names_of(repository: Path, folder: str) -> list[str]:
    return sorted(path.stem for path in (repository / folder).glob("*.yaml"))


def test_an_installed_wheel_finds_its_catalogs(repository: Path, distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    # Installing a pure wheel is unpacking it.
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LIST],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    where, recipes, targets, sets, recipe = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert Path(recipe).is_relative_to(tmp_path)
    # Files whose names begin with an underscore are bases of recipes and targets.
    for folder, found in (("quantization", recipes), ("engines/targets", targets)):
        whole = [name for name in names_of(repository, folder) if not name.startswith("_")]
        assert found.split() == whole
    assert sets.split() == names_of(repository, "calibration/sets")


def test_the_sdist_has_the_catalogs_where_the_source_has_them(repository: Path, distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"quantization/{name}.yaml" for name in names_of(repository, "quantization")} <= files
    assert {f"engines/targets/{name}.yaml" for name in names_of(repository, "engines/targets")} <= files
    assert {f"calibration/sets/{name}.yaml" for name in names_of(repository, "calibration/sets")} <= files
    assert {"LICENSE", "README.md", "pyproject.toml", "nvlm_deploy/py.typed"} <= files
