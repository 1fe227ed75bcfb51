"""The native runtime, built once for all of its tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

# A header of every Debian package that the build needs.
PACKAGES = {
    "jpeglib.h": "libjpeg62-turbo-dev",
    "png.h": "libpng-dev",
    "zlib.h": "zlib1g-dev",
    "openssl/evp.h": "libssl-dev",
    "nlohmann/json.hpp": "nlohmann-json3-dev",
    "utf8proc.h": "libutf8proc-dev",
}


def missing_packages() -> list[str]:
    """Debian packages without which the runtime cannot be built here."""
    tools = {"cmake": "cmake", "c++": "g++", "pkg-config": "pkg-config"}
    missing = [package for tool, package in tools.items() if shutil.which(tool) is None]
    if "g++" in missing:
        return missing
    return missing + [package for header, package in PACKAGES.items() if not _has_header(header)]


def _has_header(header: str) -> bool:
    source = f"#include <cstdio>\n#include <{header}>\n"
    command = ["c++", "-E", "-x", "c++", "-o", os.devnull, "-"]
    return subprocess.run(command, input=source.encode(), capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def native_build(repository: Path) -> Path:
    """The build folder of the runtime, its command-line program and what tests it."""
    missing = missing_packages()
    if missing:
        pytest.skip("the native runtime cannot be built here: apt-get install " + " ".join(missing))
    build = repository / "build" / "native-tests"
    source = repository / "engines" / "runtime"
    configure = ["cmake", "-S", str(source), "-B", str(build), "-DNVLM_TESTS=ON", "-DNVLM_WERROR=ON"]
    _run(configure)
    _run(["cmake", "--build", str(build), "--parallel", str(len(os.sched_getaffinity(0)))])
    return build


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


class Probe:
    """A program that answers lines of stdin with lines of stdout."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words: object) -> str:
        """Send one line; return its answer."""
        self._pipe(self._process.stdin).write(" ".join(map(str, words)) + "\n")
        self._pipe(self._process.stdin).flush()
        answer = self._pipe(self._process.stdout).readline()
        assert answer.endswith("\n"), f"the probe died at {words}"
        return answer[:-1]

    def close(self) -> None:
        self._pipe(self._process.stdin).close()
        self._pipe(self._process.stdout).close()
        assert self._process.wait() == 0

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


@pytest.fixture(scope="session")
def image_probe(native_build: Path) -> Iterator[Probe]:
    """Tiles images natively; see engines/runtime/tests/image_probe.cpp."""
    probe = Probe(native_build / "tests" / "image_probe")
    yield probe
    probe.close()
