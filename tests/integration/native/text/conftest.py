"""The program that answers for the native runtime's text and sampling."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class TextLines:
    """Sends requests to `text_lines`; see the top of text_lines.cpp."""

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


@pytest.fixture
def native(native_build: Path) -> Iterator[TextLines]:
    """A process of its own for each test."""
    lines = TextLines(native_build / "tests" / "text_lines")
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
