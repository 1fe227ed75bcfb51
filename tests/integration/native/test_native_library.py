"""libnvlm as others see it: symbols, exceptions, installation, and the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from nvlm_deploy import __version__
from nvlm_deploy.cli.main import run

from .conftest import SANITIZER_FLAGS

Cli = Callable[..., CompletedProcess[str]]


def output_of(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def exported(library: Path) -> set[str]:
    return {line.split()[-1] for line in output_of("nm", "-D", "--defined-only", library).splitlines()}


def declared(repository: Path) -> set[str]:
    header = (repository / "engines" / "runtime" / "include" / "nvlm" / "nvlm.h").read_text()
    return set(re.findall(r"NVLM_API[^;(]*?\b(nvlm_\w+)\(", header))


def test_nothing_but_the_header_is_exported(native_library: Path, repository: Path) -> None:
    assert exported(native_library) == declared(repository)


def test_no_exception_leaves_an_entry(native_library: Path, native_build: Path, repository: Path) -> None:
    lines = output_of(native_build / "tests" / "fault_probe").splitlines()
    assert {line.split()[0] for line in lines if line.startswith("nvlm_")} == declared(repository)
    entries = len(declared(repository))
    statuses = [line.split()[1:] for line in lines if line.startswith("nvlm_")]
    assert len(statuses) == 5 * entries
    of_round = [[s[0] for s in statuses[i * entries : (i + 1) * entries] if s != ["void"]] for i in range(5)]
    # Null pointers; then an error of ours, no memory, a standard exception, and a number.
    assert [set(statuses) for statuses in of_round] == [{"2"}, {"4"}, {"1"}, {"1"}, {"1"}]
    assert [line for line in lines if line.startswith("last error")] == [
        "last error: thrown on purpose",
        "last error: there is not enough memory",
        "last error: thrown on purpose",
        "last error: an exception of an unknown kind",
    ]


def test_installed_and_used_by_another_project(
    native_library: Path, native_build: Path, repository: Path, example_bundle: Path, tmp_path: Path
) -> None:
    prefix = tmp_path / "prefix"
    output_of("cmake", "--install", native_build, "--prefix", prefix)
    build = tmp_path / "build"
    output_of(
        "cmake", "-S", repository / "examples" / "cpp", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DCMAKE_CXX_FLAGS={' '.join(SANITIZER_FLAGS)}",
    )  # fmt: skip
    output_of("cmake", "--build", build)
    samples = repository / "examples" / "nvlm-d-tiny" / "samples"
    sample = json.loads((samples / "samples.jsonl").read_text().splitlines()[0])
    image, question = samples / sample["image"], sample["question"]
    printed = output_of(build / "ask", example_bundle, image, question)
    found = output_of(build / "camera", example_bundle, question, image, image)
    assert printed.strip()
    assert found.count(printed.strip()) == 2


def test_a_c_program_with_pkg_config(
    native_library: Path, native_build: Path, repository: Path, example_bundle: Path, tmp_path: Path
) -> None:
    prefix = tmp_path / "prefix"
    output_of("cmake", "--install", native_build, "--prefix", prefix)
    (description,) = prefix.rglob("nvlm.pc")
    found = f"--define-variable=prefix={prefix}"
    environment = {**os.environ, "PKG_CONFIG_PATH": str(description.parent)}
    flags = subprocess.run(
        ["pkg-config", found, "--cflags", "--libs", "nvlm"], env=environment, capture_output=True, text=True
    )
    assert flags.returncode == 0, flags.stderr
    program = tmp_path / "ask"
    source = repository / "examples" / "c" / "ask.c"
    libraries = description.parent.parent
    output_of("cc", "-std=c11", "-Wall", "-Werror", source, "-o", program, *flags.stdout.split(),
              f"-Wl,-rpath,{libraries}", *SANITIZER_FLAGS)  # fmt: skip
    assert output_of(program, example_bundle, "Hello").strip()


def test_the_command_line_is_that_of_python(
    native_cli: Cli, example_bundle: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = repository / "examples" / "nvlm-d-tiny" / "samples"
    sample = json.loads((samples / "samples.jsonl").read_text().splitlines()[1])
    options = ["--image", str(samples / sample["image"]), "--prompt", sample["question"], "--threads", "1"]
    more = ["--max-new-tokens", "9", "--temperature", "0.9", "--top-k", "30", "--top-p", "0.9", "--seed", "4"]
    assert run(["run", str(example_bundle), *options, *more, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    found = json.loads(native_cli(example_bundle, *options, *more, "--json").stdout)
    assert list(found) == list(expected)
    assert list(found.pop("timings_ms")) == list(expected.pop("timings_ms"))
    assert found == expected
    for extra in ([], ["--stream"], ["--memory", "mapped"]):
        done = native_cli(example_bundle, *options, *more, *extra)
        assert done.returncode == 0
        assert done.stdout == expected["text"] + "\n"
        assert done.stderr.startswith("tile ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Missing argument 'BUNDLE'"),
        (["b"], "Missing option '--prompt'"),
        (["b", "--prompt"], "Option '--prompt' requires an argument"),
        (["b", "--prompt", "x", "--shout"], "No such option: --shout"),
        (["b", "c", "--prompt", "x"], "Got unexpected extra argument (c)"),
        (["b", "--prompt", "x", "--seed", "ten"], "'ten' is no integer of at least 0"),
        (["b", "--prompt", "x", "--temperature", "nan"], "'nan' is no number"),
        (["b", "--prompt", "x", "--memory", "slow"], "'slow' is neither fast nor mapped"),
        (["b", "--prompt", "x", "--stream", "--json"], "--stream and --json exclude each other"),
    ],
)
def test_a_wrong_command_line(native_cli: Cli, arguments: list[str], text: str) -> None:
    done = native_cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {text}") or text in done.stderr


def test_version_and_help(native_cli: Cli) -> None:
    assert native_cli("--version").stdout == f"nvlm-cli {__version__}\n"
    assert native_cli("--help").stdout.startswith("Usage: nvlm-cli BUNDLE --prompt TEXT")
