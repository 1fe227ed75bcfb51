"""Comparisons of reports: what counts as slower, what as noise, and what the files have to say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nvlm_deploy.bench.compare import compare_reports, compare_rows
from nvlm_deploy.bench.samples import Row, SampleReport
from nvlm_deploy.errors import NvlmError, UsageError

ROUNDS, SEEDS, THRESHOLD = 20, 40, 0.02
# As of this project's own rows on a quiet machine.
NOISE = 0.02


def measured(seed: int, factor: float = 1.0) -> Row:
    """A row as a machine gives them: 100 ms, with a tail of slow rounds."""
    rng = np.random.default_rng(seed)
    noise = np.abs(rng.normal(0, NOISE, ROUNDS)) + rng.exponential(NOISE, ROUNDS) * (rng.random(ROUNDS) < 0.2)
    return Row("t7", "ttft", tuple(100 * factor * (1 + noise)))


def report(*rows: Row, **engine: object) -> SampleReport:
    return SampleReport({"recipe": "int8", "load_s": 1.0, **engine}, {"threads": 2}, None, rows)


def test_five_percent_are_seen_and_equal_runs_are_not() -> None:
    slower = [compare_rows(measured(s), measured(s + 1000, 1.05), THRESHOLD) for s in range(SEEDS)]
    equal = [compare_rows(measured(s), measured(s + 1000), THRESHOLD) for s in range(SEEDS)]
    assert sum(row.verdict == "slower" for row in slower) >= 0.9 * SEEDS
    assert not [row for row in equal if row.verdict in ("slower", "faster")]
    assert all(row.low <= row.ratio <= row.high for row in (*slower, *equal))


def test_verdicts() -> None:
    def verdict(factor: float) -> str:
        steady = Row("t1", "vision", tuple(100 + 0.1 * n for n in range(ROUNDS)))
        other = Row("t1", "vision", tuple(factor * ms for ms in steady.samples_ms))
        return compare_rows(steady, other, THRESHOLD).verdict

    assert [verdict(factor) for factor in (0.9, 1.0, 1.019, 1.05)] == ["faster", "same", "unclear", "slower"]


def test_a_single_round_is_its_own_interval() -> None:
    row = compare_rows(Row("t1", "ttft", (100.0,)), Row("t1", "ttft", (103.0,)), THRESHOLD)
    assert (row.low, row.high, row.verdict) == (1.03, 1.03, "slower")


def test_rows_of_one_report_and_facts_that_differ_are_told() -> None:
    first = report(measured(1), Row("pp8", "prefill", (1.0,)))
    found = compare_reports(first, report(measured(1), recipe="int4-rtn", load_s=2.0), THRESHOLD)
    assert found.missing == ("pp8 prefill",)
    assert found.differing == (("recipe", "int8", "int4-rtn"),)
    assert found.slower == ()
    with pytest.raises(UsageError, match="no test in common"):
        compare_reports(report(measured(1)), report(Row("pp8", "prefill", (1.0,))), THRESHOLD)


def test_reports_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    written = report(measured(1), Row("tg4@8", "tpot", (2.0, 4.0), 1, 0.5))
    path.write_text(json.dumps(written.to_dict()))
    read = SampleReport.read(path)
    assert [row.samples_ms for row in read.rows] == [row.samples_ms for row in written.rows]
    assert read.rows[1].to_dict()["share_of_limit"] == pytest.approx(0.5 / 3)


@pytest.mark.parametrize("text", ["", "[]", '{"rows": 1}', '{"rows": [{"test": "t1"}]}'])
def test_other_files_are_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(NvlmError, match=r"other\.json is no report"):
        SampleReport.read(path)
    with pytest.raises(NvlmError, match="cannot be read"):
        SampleReport.read(tmp_path / "missing.json")


def test_rows_say_rates_and_shares() -> None:
    row = Row("pp512", "prefill", (900.0, 1000.0, 1300.0), 512, 250.0).to_dict()
    assert (row["median_ms"], row["tokens_per_s"], row["share_of_limit"]) == (1000.0, 512.0, 0.25)
    assert row["spread"] == pytest.approx(0.1)
    bare = Row("t1", "tile", (0.0,)).to_dict()
    assert (bare["tokens_per_s"], bare["share_of_limit"], bare["spread"]) == (None, None, 0.0)
