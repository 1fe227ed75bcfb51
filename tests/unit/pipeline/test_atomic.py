from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.pipeline.atomic import atomic_directory, is_disk_full

# A writer that says where it is and then waits to be killed.
WRITER = """
import signal, sys, time
from pathlib import Path
from nvlm_deploy.pipeline.atomic import atomic_directory
# A shell that starts something in the background lets it ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
with atomic_directory(Path(sys.argv[1])) as work:
    (work / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "bundle[1]"


def start_writer(output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def finish(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    process.wait(timeout=10)
    assert process.stdout is not None
    process.stdout.close()


def test_the_output_appears_whole_and_alone(output: Path) -> None:
    with atomic_directory(output) as work:
        (work / "part").mkdir()
        (work / "part" / "file").write_text("data")
        assert not output.exists()
    assert (output / "part" / "file").read_text() == "data"
    assert list(output.parent.iterdir()) == [output]


def test_the_output_has_ordinary_permissions(output: Path) -> None:
    with atomic_directory(output):
        pass
    plain = output.parent / "plain"
    plain.mkdir()
    assert output.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def work_and_fail() -> None:
        with atomic_directory(tmp_path / "new" / "parents" / "bundle") as work:
            (work / "half").write_text("half")
            raise error

    with pytest.raises(error):
        work_and_fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["directory", "file", "broken link"])
def test_an_output_that_exists_is_refused_untouched(output: Path, kind: str) -> None:
    if kind == "directory":
        output.mkdir()
    elif kind == "file":
        output.write_text("mine")
    else:
        output.symlink_to("nowhere")
    with pytest.raises(UsageError, match="exists already"), atomic_directory(output):
        pytest.fail("the work was started")
    assert os.path.lexists(output)
    assert len(list(output.parent.iterdir())) == 1


def test_the_remains_of_a_killed_run_go_with_the_next_one(output: Path) -> None:
    finish(start_writer(output), signal.SIGKILL)
    (left,) = output.parent.iterdir()
    assert left.name.startswith(".bundle[1].building-")
    with atomic_directory(output) as work:
        assert list(output.parent.iterdir()) == [work]
    assert list(output.parent.iterdir()) == [output]


def test_a_living_run_is_not_disturbed(output: Path) -> None:
    process = start_writer(output)
    try:
        with pytest.raises(UsageError, match="another run is writing"), atomic_directory(output):
            pytest.fail("the work was started")
        assert [path.name for path in next(output.parent.iterdir()).iterdir()] == ["half"]
    finally:
        finish(process, signal.SIGKILL)


def test_interrupting_a_run_leaves_nothing(output: Path) -> None:
    finish(start_writer(output), signal.SIGINT)
    assert list(output.parent.iterdir()) == []


def test_an_output_that_appears_meanwhile_is_kept(output: Path) -> None:
    def work_while_it_appears() -> None:
        with atomic_directory(output) as work:
            (work / "mine").write_text("mine")
            output.mkdir()

    with pytest.raises(UsageError, match="exists already"):
        work_while_it_appears()
    assert list(output.parent.iterdir()) == [output]
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_becomes_a_sentence(output: Path, number: int) -> None:
    def fill() -> None:
        with atomic_directory(output):
            try:
                raise OSError(number, os.strerror(number))
            except OSError as error:
                raise ValueError("a library's own words") from error

    with pytest.raises(NvlmError, match="no space left on the disk") as caught:
        fill()
    assert caught.value.hint is not None
    assert list(output.parent.iterdir()) == []


def test_other_errors_are_no_full_disk() -> None:
    assert not is_disk_full(OSError(errno.EACCES, "no"))
    assert not is_disk_full(ValueError("no space"))
