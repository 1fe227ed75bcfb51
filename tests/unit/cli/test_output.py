from __future__ import annotations

import pytest

from nvlm_deploy.cli.output import human_bytes, print_sizes, print_table, progress_bars
from nvlm_deploy.config.manifest import PartSize


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (2_345_678, "2.3 MB"),
        (1e9, "1.0 GB"),
        (2.5e13, "25.0 TB"),
    ],
)
def test_sizes_are_read_by_people(size: float, text: str) -> None:
    assert human_bytes(size) == text


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("a", "1"), ("long", "22")], right=(1,))
    assert capsys.readouterr().out == "a      1\nlong  22\n"


def test_sizes_have_a_total_and_no_division_by_zero(capsys: pytest.CaptureFixture[str]) -> None:
    print_sizes([PartSize("vision", 1000, 250, 1000, 250), PartSize("lm_head", 0, 250, 0, 250)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["vision", "1.0", "kB", "250", "B", "0.25"]
    assert lines[2][-1] == "-"
    assert lines[3] == ["total", "1.0", "kB", "500", "B", "0.50"]


def test_no_bars_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as progress:
        progress("vision", 1, 2)
    assert capsys.readouterr() == ("", "")
