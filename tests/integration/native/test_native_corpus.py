"""What fuzzers start from, and what they have found, does no harm: replayed without a fuzzer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Variant


@pytest.mark.parametrize("name", ["abi", "bundle", "encode", "image", "manifest", "tokenizer_file"])
def test_corpus(
    name: str,
    repository: Path,
    native_library: Path,
    native_build: Path,
    cross_bundle: Callable[[Variant, str], Path],
) -> None:
    files = sorted((repository / "engines" / "runtime" / "fuzz" / "corpus" / name).iterdir())
    assert files
    done = subprocess.run(
        [native_build / "fuzz" / f"replay_{name}", *files],
        env={**os.environ, "NVLM_FUZZ_BUNDLE": str(cross_bundle("X", "int8"))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-4000:])
    assert done.stdout.splitlines() == list(map(str, files))
