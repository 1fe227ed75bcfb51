"""The native runtime, built once for all of its tests."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

import pytest

from nvlm_deploy.cli.main import run
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import cross_style_config
from tests.conftest import TINY_SHAPE

Variant = Literal["X", "H"]

# Programs that load a library with sanitizers must have them, too.
SANITIZERS = os.environ.get("NVLM_SANITIZE", "")
SANITIZER_FLAGS = [f"-fsanitize={SANITIZERS}"] if SANITIZERS else []

# A header of every Debian package that the build needs.
PACKAGES = {
    "jpeglib.h": "libjpeg62-turbo-dev",
    "png.h": "libpng-dev",
    "zlib.h": "zlib1g-dev",
    "openssl/evp.h": "libssl-dev",
    "nlohmann/json.hpp": "nlohmann-json3-dev",
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
    """The build folder of the runtime, its command-line program and what tests it.

    With sanitizers if the environment's NVLM_SANITIZE names some, as `address,undefined`.
    """
    missing = missing_packages()
    if missing:
        pytest.skip("the native runtime cannot be built here: apt-get install " + " ".join(missing))
    build = repository / "build" / "-".join(["native-tests", *SANITIZERS.split(",")]).rstrip("-")
    source = repository / "engines" / "runtime"
    configure = ["cmake", "-S", str(source), "-B", str(build), "-DNVLM_TESTS=ON", "-DNVLM_WERROR=ON"]
    configure.append(f"-DNVLM_SANITIZE={SANITIZERS}")
    _run(configure)
    _run(["cmake", "--build", str(build), "--parallel", str(len(os.sched_getaffinity(0)))])
    return build


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


class Probe:
    """A program that answers lines of stdin with lines of stdout."""

    def __init__(self, program: Path, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

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
    """Tiles images; see engines/runtime/tests/image_probe.cpp."""
    probe = Probe(native_build / "tests" / "image_probe")
    yield probe
    probe.close()


def onnxruntime_library() -> Path:
    """The library in the installed wheel."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    (library,) = (Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*")
    return library


@pytest.fixture(scope="session")
def native_library(native_build: Path) -> Path:
    """libnvlm with the backend of onnxruntime; programs started from now on find ONNX Runtime."""
    library = native_build / "libnvlm.so"
    if "ort_session" not in (native_build / "compile_commands.json").read_text():
        script = "engines/runtime/cmake/onnxruntime_headers.sh build/onnxruntime-headers"
        pytest.skip(f"onnxruntime_c_api.h is not here: apt-get install libonnxruntime-dev, or run {script}")
    os.environ["NVLM_ONNXRUNTIME_LIBRARY"] = str(onnxruntime_library())
    return library


class NativeEngine:
    """Asks engine_probe; see engines/runtime/tests/engine_probe.cpp."""

    def __init__(self, build: Path, bundle: Path) -> None:
        self._probe = Probe(build / "tests" / "engine_probe", str(bundle))

    def ask(self, **line: Any) -> dict[str, Any]:
        """Send one line of JSON; return its answer."""
        answer: dict[str, Any] = json.loads(self._probe.ask(json.dumps({"verb": "generate", **line})))
        return answer

    def close(self) -> None:
        self._probe.close()


@pytest.fixture(scope="session")
def native_engine(native_library: Path, native_build: Path) -> Iterator[Callable[[Path], NativeEngine]]:
    """Opens bundles natively."""
    opened: dict[Path, NativeEngine] = {}

    def open_once(bundle: Path) -> NativeEngine:
        if bundle not in opened:
            opened[bundle] = NativeEngine(native_build, bundle)
        return opened[bundle]

    yield open_once
    for engine in opened.values():
        engine.close()


@pytest.fixture(scope="session")
def native_cli(native_library: Path, native_build: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs nvlm-cli."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(native_build / "cli" / "nvlm-cli"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return call


@pytest.fixture(scope="session")
def example_bundle(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The INT4 engine of the trained example; not to be changed."""
    output = tmp_path_factory.mktemp("example") / "bundle"
    names = ["--recipe", "int4-rtn", "--target", "cpu-x86", "--no-verify"]
    assert run(["engine", str(repository / "examples" / "nvlm-d-tiny"), *names, "-o", str(output)]) == 0
    return output


@pytest.fixture(scope="session")
def cross_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant, str], Path]:
    """Engines of random NVLM-X and NVLM-H by variant and recipe; not to be changed."""
    folder = tmp_path_factory.mktemp("cross")
    shape = replace(TINY_SHAPE, layers=3)

    @cache
    def checkpoint(variant: Variant) -> Path:
        write_random_checkpoint(cross_style_config(shape, variant, [0, 2]), folder / variant)
        return folder / variant

    @cache
    def build(variant: Variant, recipe: str) -> Path:
        output = folder / f"{variant}-{recipe}"
        names = ["--recipe", recipe, "--target", "cpu-x86", "--no-verify"]
        assert run(["engine", str(checkpoint(variant)), *names, "-o", str(output)]) == 0
        return output

    return build
