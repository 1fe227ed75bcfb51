"""The cap on compilers' memory, with processes that really allocate."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.pipeline.memory_cap import available_bytes, memory_cap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MB = 1 << 20


def allocate(megabytes: int, seconds: float = 0.6) -> list[str]:
    code = f"import time; x = bytearray({megabytes} << 20); time.sleep({seconds})"
    return [sys.executable, "-c", code]


def run(command: list[str]) -> int:
    code = subprocess.run(command, check=False).returncode
    if code < 0:
        raise NvlmError(f"ended by signal {-code}")
    return code


def test_the_peak_of_all_processes_is_measured() -> None:
    with memory_cap(None, "a test") as watch:
        assert run(allocate(80)) == 0
    assert 80 * MB < watch.peak_bytes < 200 * MB


def test_a_process_over_the_cap_is_ended_and_the_cap_named() -> None:
    start = time.perf_counter()
    said = r"compiling took .* more than the 0\.06 GB allowed"
    with pytest.raises(NvlmError, match=said) as caught, memory_cap(60 * MB, "compiling"):
        run(allocate(200, seconds=30))
    assert time.perf_counter() - start < 20
    assert "--max-build-memory" in str(caught.value.hint)


def test_children_of_children_count() -> None:
    nested = f"import subprocess; subprocess.run({allocate(120, seconds=30)!r})"
    with pytest.raises(NvlmError, match="compiling took"), memory_cap(100 * MB, "compiling"):
        subprocess.run([sys.executable, "-c", nested], check=False)


def test_processes_that_were_there_before_are_left_alone() -> None:
    other = subprocess.Popen(allocate(200, seconds=30))
    try:
        time.sleep(0.3)
        with memory_cap(100 * MB, "compiling") as watch:
            assert run(allocate(20, seconds=0.3)) == 0
        assert other.poll() is None
        assert watch.peak_bytes < 100 * MB
    finally:
        other.kill()
        other.wait()


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(NvlmError, match="the parser refuses"), memory_cap(1 << 40, "compiling"):
        raise NvlmError("the parser refuses the graph")


def test_what_is_available() -> None:
    there = available_bytes()
    assert there is not None
    assert there > 1 << 20
