"""Work in pieces: what is finished stays, what belongs to another request does not."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.pipeline.resumable import resumable_directory


def work(output: Path, key: dict[str, int], until: int, pieces: int = 3) -> list[int]:
    """Do the pieces that are not done, and stop before number `until`; return those that were done."""
    done = []
    with resumable_directory(output, key) as work:
        for piece in range(pieces):
            if piece == until:
                raise KeyboardInterrupt
            if work.finished(piece) is None:
                (work.result / f"{piece}.txt").write_text(str(key))
                work.finish(piece, {"number": piece})
                done.append(piece)
            assert work.finished(piece) == {"number": piece}
    return done


def stop(output: Path, key: dict[str, int], until: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        work(output, key, until)


def test_an_interrupted_run_is_continued(tmp_path: Path) -> None:
    output = tmp_path / "out"
    stop(output, {"seed": 1}, until=2)
    assert not output.exists()
    assert work(output, {"seed": 1}, until=-1) == [2]
    assert sorted(path.name for path in output.iterdir()) == ["0.txt", "1.txt", "2.txt"]
    assert list(tmp_path.iterdir()) == [output]


def test_another_key_starts_anew(tmp_path: Path) -> None:
    output = tmp_path / "out"
    stop(output, {"seed": 1}, until=2)
    assert work(output, {"seed": 2}, until=-1) == [0, 1, 2]
    assert {path.read_text() for path in output.iterdir()} == {"{'seed': 2}"}


def test_what_is_left_of_a_run_that_was_killed_at_its_very_end_is_not_taken_for_work(tmp_path: Path) -> None:
    output = tmp_path / "out"
    stop(output, {"seed": 1}, until=2)
    # It had renamed its result, and not removed the rest yet; then the user removed the output.
    left = tmp_path / ".out.unfinished"
    (left / "result").rename(tmp_path / "removed")
    assert work(output, {"seed": 1}, until=-1) == [0, 1, 2]


def test_a_damaged_key_starts_anew(tmp_path: Path) -> None:
    output = tmp_path / "out"
    stop(output, {"seed": 1}, until=1)
    (tmp_path / ".out.unfinished" / "key.json").write_text('{"seed"')
    assert work(output, {"seed": 1}, until=-1) == [0, 1, 2]


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with resumable_directory(output, {}) as first:
        with pytest.raises(UsageError, match="another run is writing"), resumable_directory(output, {}):
            pass
        assert first.result.is_dir()
        assert not output.exists()
    assert output.is_dir()


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(UsageError, match="exists already"), resumable_directory(output, {}):
        pass
    assert list(tmp_path.iterdir()) == [output]


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path) -> None:
    output = tmp_path / "out"

    def fill() -> None:
        with resumable_directory(output, {}) as work:
            work.finish(0, {})
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NvlmError, match="no space left"):
        fill()
    with resumable_directory(output, {}) as again:
        assert again.finished(0) == {}
