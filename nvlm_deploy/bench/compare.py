"""Two reports of the same tests: which rows became slower, by how much, and how sure that is.

The ratio of the medians is taken of resampled rounds again and again (the bootstrap: Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13); where 95 % of these ratios lie is where the true one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from nvlm_deploy.bench.samples import Row, SampleReport
from nvlm_deploy.errors import UsageError

Verdict = Literal["slower", "faster", "same", "unclear"]

_RESAMPLES = 4000
_TAIL_PERCENT = 2.5


@dataclass(frozen=True, slots=True)
class RowComparison:
    """ratio: median of the second over that of the first; low and high enclose it with 95 % confidence.

    verdict: `slower` or `faster` by more than the threshold, both ends; `same`: within it, both ends;
    `unclear`: the rounds are too few or too unsteady to say.
    """

    name: str
    first_ms: float
    second_ms: float
    ratio: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ReportComparison:
    """Rows that both reports have; missing: names that only one has. differing: facts of engine and
    environment that are not equal, as (name, first, second)."""

    threshold: float
    rows: tuple[RowComparison, ...]
    missing: tuple[str, ...]
    differing: tuple[tuple[str, Any, Any], ...]

    @property
    def slower(self) -> tuple[str, ...]:
        """Names of rows that became slower."""
        return tuple(row.name for row in self.rows if row.verdict == "slower")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def compare_reports(first: SampleReport, second: SampleReport, threshold: float) -> ReportComparison:
    """Compare row by row; `threshold` is a share of time, 0.02 for 2 %.

    Raises:
        UsageError: no row is in both.
    """
    rows = {row.name: row for row in first.rows}
    others = {row.name: row for row in second.rows}
    shared = [name for name in rows if name in others]
    if not shared:
        raise UsageError("the two reports have no test in common")
    return ReportComparison(
        threshold,
        tuple(compare_rows(rows[name], others[name], threshold) for name in shared),
        tuple(sorted(rows.keys() ^ others.keys())),
        _differing(first, second),
    )


def compare_rows(first: Row, second: Row, threshold: float) -> RowComparison:
    """Compare two rows of the same test; equal rows give equal answers, the resampling has a fixed seed."""
    ratio = second.median_ms / first.median_ms if first.median_ms else 1.0
    low, high = _interval(first.samples_ms, second.samples_ms) if first.median_ms else (1.0, 1.0)
    return RowComparison(
        first.name, first.median_ms, second.median_ms, ratio, low, high, _verdict(low, high, threshold)
    )


def _interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    medians = [
        np.median(rng.choice(np.asarray(samples), (_RESAMPLES, len(samples))), axis=1)
        for samples in (first, second)
    ]
    # Zeros can only be drawn where the clock saw none; a ratio to them says nothing.
    ratios = medians[1] / np.maximum(medians[0], np.finfo(np.float64).tiny)
    low, high = np.percentile(ratios, [_TAIL_PERCENT, 100 - _TAIL_PERCENT])
    return float(low), float(high)


def _verdict(low: float, high: float, threshold: float) -> Verdict:
    if low > 1 + threshold:
        return "slower"
    if high < 1 - threshold:
        return "faster"
    return "same" if 1 - threshold <= low and high <= 1 + threshold else "unclear"


def _differing(first: SampleReport, second: SampleReport) -> tuple[tuple[str, Any, Any], ...]:
    # Loading is measured, and not a fact.
    ours, theirs = ({**r.engine, **r.environment, "load_s": None} for r in (first, second))
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return tuple((name, ours.get(name), theirs.get(name)) for name in names)
