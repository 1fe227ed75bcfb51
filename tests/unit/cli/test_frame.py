from __future__ import annotations

import importlib
import resource
import subprocess
import sys

import click
import pytest

from nvlm_deploy import __version__
from nvlm_deploy.cli.main import BUILD, PROGRAMS, run
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError, VerificationError

HELP_LIMIT_S = 0.3
HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "numpy", "pydantic", "PIL", "tokenizers")

HELP_IN_A_NEW_PROCESS = """
import sys
from nvlm_deploy.cli.frame import run_program
from nvlm_deploy.cli.main import PROGRAMS
code = run_program({{group.name: group for group in PROGRAMS}}[sys.argv[1]], sys.argv[2:])
loaded = [name for name in {heavy!r} if name in sys.modules]
sys.exit(f"imported: {{loaded}}" if loaded else code)
"""
ALL_HELPS = [
    words
    for group in PROGRAMS
    for words in [(str(group.name),), *((str(group.name), v) for v in group.verbs)]
]


def help_seconds(*arguments: str) -> float:
    """Run `--help` in a new process; return its CPU time, which other work on the machine does not change.

    On an idle machine that is the time it takes: it reads a few files and waits for nothing.
    """
    program = HELP_IN_A_NEW_PROCESS.format(heavy=HEAVY)
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--help"], capture_output=True, text=True, check=False
    )
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: {arguments[0]}" in done.stdout
    return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime


@pytest.mark.parametrize("arguments", ALL_HELPS, ids=" ".join)
def test_help_is_quick_and_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert help_seconds(*arguments) < HELP_LIMIT_S


def test_importing_the_package_loads_nothing_else() -> None:
    program = (
        "import sys, nvlm_deploy; print([n for n in sys.modules if n.startswith('nvlm') or n == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['nvlm_deploy']"


def test_the_groups_lines_are_the_verbs_own() -> None:
    for name, verb in [pair for group in PROGRAMS for pair in group.verbs.items()]:
        command = getattr(importlib.import_module(verb.module), verb.function)
        assert isinstance(command, click.Command)
        assert command.name == name
        assert (command.help or "").startswith(verb.line)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"nvlm-build {__version__}\n"


def test_a_misspelt_verb_brings_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe"]) == UsageError.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: there is no verb 'recipe'\n\nhint: did you mean 'recipes'?\n"


@pytest.mark.parametrize("arguments", [["recipes", "--jsn"], ["engine"], ["targets", "a", "b"]])
def test_a_wrong_command_line_points_at_the_verbs_help(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == UsageError.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.endswith(f"\n\nhint: nvlm-build {arguments[0]} --help\n")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (NvlmError("it broke", hint="mend it"), 1, "error: it broke\n\nhint: mend it\n"),
        (UsageError("no"), 2, "error: no\n"),
        (UnsuitableError("no"), 3, "error: no\n"),
        (VerificationError("no"), 4, "error: no\n"),
        (KeyboardInterrupt(), 130, "\nerror: interrupted\n"),
        (PermissionError(13, "Permission denied", "file"), 1, "error: file: Permission denied\n"),
    ],
)
def test_every_kind_of_failure_has_its_exit_code(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(BUILD, "resolve_command", fail)
    assert run(["recipes"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(text)


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(BUILD, "resolve_command", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run(["recipes"])


def test_no_verb_at_all_shows_the_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == UsageError.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: nvlm-build")
