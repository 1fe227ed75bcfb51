"""The rules that hold for every file of the tree."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "nvlm_deploy"

# The aim is 300 and 40; these are where it is no longer a matter of taste.
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

# Each is imported in one module, so that its absence or its new version is one module's affair.
ENGINE_MAKERS = ("modelopt", "onnxruntime", "tensorrt", "tensorrt_llm", "tensorrt_rtx")
# TensorRT-LLM imports it, not we it: `trtllm-build --model_cls_file`.
IMPORTED_BY_A_MAKER = PACKAGE / "backends/tensorrt_llm/nvlm_mllama.py"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_files_and_functions_stay_small() -> None:
    too_long = []
    for path in modules():
        text = path.read_text()
        if text.count("\n") > MAX_FILE_LINES:
            too_long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    too_long.append(f"{path}:{node.lineno} {node.name} has {length} lines")
    assert too_long == []


@pytest.mark.parametrize("maker", ENGINE_MAKERS)
def test_an_engine_maker_is_imported_in_one_module(maker: str) -> None:
    users = [path for path in modules() if maker in imported_names(ast.parse(path.read_text()))]
    assert len(set(users) - {IMPORTED_BY_A_MAKER}) <= 1, users


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    mounts = {name: folder for name, folder in settings["package-dir"].items() if name != "nvlm_deploy"}
    found = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in PACKAGE.rglob("__init__.py")}
    assert sorted(found | set(mounts)) == settings["packages"]
    for folder in mounts.values():
        body = ast.parse((REPOSITORY / folder / "__init__.py").read_text()).body
        assert len(body) == 1, f"{folder}/__init__.py is a docstring and nothing else"


def test_every_module_is_in_a_package() -> None:
    orphans = [path for path in modules() if not (path.parent / "__init__.py").exists()]
    assert orphans == []


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[^\w-]", requirement)[0].lower() for requirement in wanted}
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower(): line for line in lines if not line.startswith("#")}
    assert names - set(pinned) == set()
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in pinned.values())
    assert pinned["torch"] == "torch==2.13.0"
    # ModelOpt and the bindings that it imports are no CUDA packages.
    others = set(pinned) - {"nvidia-modelopt", "nvidia-ml-py"}
    assert not any(name.startswith(("nvidia", "cuda", "triton")) for name in others)
