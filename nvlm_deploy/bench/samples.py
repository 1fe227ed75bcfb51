"""Rows of samples: what every benchmark of time writes, and what `nvlm-bench compare` reads."""

from __future__ import annotations

import csv
import io
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.errors import NvlmError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one test.

    test: `t7` is a question about an image of seven tiles, `pp512` a prompt of 512 tokens, `tg32@512` an
        answer of 32 behind 512.
    stage: `decode_file`, `tile`, `tokenize`, `vision`, `prefill`, `ttft`, `tpot`, `e2el`.
    samples_ms: milliseconds, one for each round; tokens: how many they were for, 0 where that says nothing.
    floor_ms: below which this machine cannot go; None where no floor is known.
    """

    test: str
    stage: str
    samples_ms: tuple[float, ...]
    tokens: int = 0
    floor_ms: float | None = None

    @property
    def name(self) -> str:
        return f"{self.test} {self.stage}"

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, as a share of the median."""
        if len(self.samples_ms) < 2 or not self.median_ms:
            return 0.0
        low, _, high = statistics.quantiles(self.samples_ms, n=4, method="inclusive")
        return (high - low) / 2 / self.median_ms

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: what was measured, and what follows from it."""
        known = self.floor_ms is not None and self.median_ms > 0
        return {
            "test": self.test,
            "stage": self.stage,
            "median_ms": self.median_ms,
            "spread": self.spread,
            "tokens_per_s": 1000 * self.tokens / self.median_ms if self.tokens and self.median_ms else None,
            "floor_ms": self.floor_ms,
            "share_of_limit": self.floor_ms / self.median_ms if known and self.floor_ms is not None else None,
            "samples_ms": list(self.samples_ms),
        }


@dataclass(frozen=True, slots=True)
class SampleReport:
    """Rows, with what they were measured of (`engine`) and on (`environment`, `limits`)."""

    engine: dict[str, Any]
    environment: dict[str, Any]
    limits: dict[str, Any] | None
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "format": FORMAT,
            "engine": self.engine,
            "environment": self.environment,
            "limits": self.limits,
            "rows": [row.to_dict() for row in self.rows],
        }

    def table(self) -> list[tuple[str, ...]]:
        """For people, with a head."""
        head = ("test", "stage", "median ms", "± quartile", "tokens/s", "limit ms", "of the limit")
        return [head, *(_cells(row.to_dict()) for row in self.rows)]

    def markdown(self) -> str:
        """The table between pipes, under what was measured."""
        facts = {**self.engine, **self.environment}
        lines = [", ".join(f"{key} {value}" for key, value in facts.items()), ""]
        head, *rows = ["| " + " | ".join(cells) + " |" for cells in self.table()]
        return "\n".join([*lines, head, "|---|---|---:|---:|---:|---:|---:|", *rows]) + "\n"

    def jsonl(self) -> str:
        """A line for each row, each with engine and environment."""
        shared = {"engine": self.engine, "environment": self.environment}
        return "".join(json.dumps({**row.to_dict(), **shared}) + "\n" for row in self.rows)

    def csv(self) -> str:
        """A line for each row, without samples."""
        text = io.StringIO()
        rows = [{k: v for k, v in row.to_dict().items() if k != "samples_ms"} for row in self.rows]
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    @classmethod
    def read(cls, path: Path) -> SampleReport:
        """Read what `--format json` wrote.

        Raises:
            NvlmError: the file is missing, or no such report.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rows = tuple(
                Row(row["test"], row["stage"], tuple(map(float, row["samples_ms"])), 0, row["floor_ms"])
                for row in data["rows"]
            )
            report = cls(data["engine"], data["environment"], data["limits"], rows)
        except OSError as error:
            raise NvlmError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise NvlmError(
                f"{path} is no report of a benchmark", hint="nvlm-bench latency BUNDLE --format json -o FILE"
            ) from error
        if data.get("format") != FORMAT or not all(row.samples_ms for row in rows):
            raise NvlmError(f"{path} has another format than this release writes, or rows without samples")
        return report


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return (
        row["test"],
        row["stage"],
        number(row["median_ms"], ".2f"),
        number(row["spread"], ".1%"),
        number(row["tokens_per_s"], ".1f"),
        number(row["floor_ms"], ".2f"),
        number(row["share_of_limit"], ".0%"),
    )
