"""The native runtime's text and sampling libraries, built once, and the program that answers for them."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_TOOLS = {"cmake": "cmake", "c++": "g++"}
_HEADERS = {"nlohmann/json.hpp": "nlohmann-json3-dev"}


class TextLines:
    """Sends requests to `nvlm_text_lines`; see the top of text_lines.cpp."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request; return its answer, which may be an error."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request).encode() + b"\n")
        stdin.flush()
        line = stdout.readline()
        assert line, f"the program died of {str(request)[:500]}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture(scope="session")
def text_program(repository: Path) -> Path:
    """The built program; an earlier build is brought up to date."""
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if not missing:
        missing = [package for header, package in _HEADERS.items() if not _has_header(header)]
    if missing:
        pytest.skip("the native text library cannot be built here: apt-get install " + " ".join(missing))
    build = repository / "build" / "native-text"
    source = repository / "engines" / "runtime" / "tests" / "text"
    _run("cmake", "-S", source, "-B", build)
    _run("cmake", "--build", build, "--parallel", len(os.sched_getaffinity(0)))
    return build / "nvlm_text_lines"


@pytest.fixture
def native(text_program: Path) -> Iterator[TextLines]:
    """A process of its own for each test."""
    lines = TextLines(text_program)
    yield lines
    lines.close()


@pytest.fixture(scope="session")
def qwen2_file(shared_data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real vocabulary as a tokenizer.json."""
    packed = (shared_data_dir / "qwen2-tokenizer.json.gz").read_bytes()
    path = tmp_path_factory.mktemp("qwen2") / "tokenizer.json"
    path.write_bytes(gzip.decompress(packed))
    return path


@pytest.fixture(scope="session")
def example_dir(repository: Path) -> Path:
    """The example checkpoint."""
    return repository / "examples" / "nvlm-d-tiny"


def _has_header(header: str) -> bool:
    source = f"#include <{header}>\n".encode()
    command = ["c++", "-E", "-x", "c++", "-o", os.devnull, "-"]
    return subprocess.run(command, input=source, capture_output=True).returncode == 0


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
