"""`nvlm-eval run` and `nvlm-eval formats`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from nvlm_deploy.eval.run import RunReport, RunRequest
    from nvlm_deploy.eval.scoring import Tally

_PATH = click.Path(path_type=Path)


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """The parsed command line."""

    dataset: Path
    model: Path
    output: Path
    format: str
    images: Path | None
    annotations: Path | None
    metric: str | None
    by: str | None
    limit: int | None
    max_new_tokens: int
    max_failures: int
    device: str
    as_json: bool


@click.command()
@click.argument("dataset", type=_PATH)
@click.option("--model", metavar="BUNDLE", required=True, type=_PATH, help="An engine, or a checkpoint.")
@click.option("-o", "--output", metavar="FILE", required=True, type=_PATH, help="Predictions, JSONL.")
@click.option("--format", metavar="NAME", default="jsonl", show_default=True, help="See nvlm-eval formats.")
@click.option("--images", metavar="DIR", type=_PATH, help="Of image names. Default: the folder of DATASET.")
@click.option("--annotations", metavar="FILE", type=_PATH, help="The answers of vqav2.")
@click.option("--metric", metavar="NAME", help="See nvlm-eval metrics. Default: that of the format.")
@click.option("--by", metavar="FIELD", help="Scores by the values of a field, too, for example type.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="The first questions only.")
@click.option("--max-new-tokens", metavar="N", type=click.IntRange(min=1), default=1024, show_default=True)
@click.option(
    "--max-failures",
    metavar="N",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Samples without an answer that are taken; each scores 0.",
)
@click.option("--device", metavar="DEVICE", default="cpu", show_default=True, help="Of an engine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def run(**options: Any) -> None:
    """Answer a benchmark's questions and score them.

    DATASET is a file, or a folder, in one of the formats of `nvlm-eval formats`. Answers are greedy. Every
    prediction is on disk before the next question is asked: a run that was stopped goes on when it is
    repeated, if model and data are the same.
    """
    from nvlm_deploy.cli.output import print_json, progress_bars
    from nvlm_deploy.eval.run import run_benchmark

    parsed = BenchmarkOptions(**options)
    request = _request(parsed)
    with progress_bars() as progress:
        report = run_benchmark(request, progress)
    print_json(report.to_dict()) if parsed.as_json else _print_report(report)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def formats(as_json: bool) -> None:
    """List the formats of data sets that can be read."""
    from nvlm_deploy.cli.output import print_json, print_table
    from nvlm_deploy.eval.datasets import FORMATS

    if as_json:
        print_json({each.name: {"files": each.line, "metric": each.metric} for each in FORMATS.values()})
        return
    print_table(
        [
            ("format", "files", "metric"),
            *((each.name, each.line, each.metric or "-") for each in FORMATS.values()),
        ]
    )


def _request(options: BenchmarkOptions) -> RunRequest:
    from nvlm_deploy.eval.datasets import DatasetFiles, find_format
    from nvlm_deploy.eval.metrics import find_metric
    from nvlm_deploy.eval.run import RunRequest

    kind = find_format(options.format)
    name = options.metric or kind.metric
    folder = options.dataset if options.dataset.is_dir() else options.dataset.parent
    return RunRequest(
        model=options.model,
        format=kind,
        files=DatasetFiles(options.dataset, options.images or folder, options.annotations),
        metric=find_metric(name) if name else None,
        output=options.output,
        limit=options.limit,
        max_new_tokens=options.max_new_tokens,
        max_failures=options.max_failures,
        by=options.by,
        device=options.device,
    )


def _print_report(report: RunReport) -> None:
    from nvlm_deploy.cli.output import note, print_table

    rows = [(report.dataset, "score", "samples", "failures")]
    if report.score is None:
        rows.append(("predictions", "-", str(report.samples), str(len(report.failed))))
        note("no score: without a metric, or without references, predictions are all there is")
    else:
        groups = sorted(report.score.groups.items())
        rows += [_row(name, tally) for name, tally in [*groups, (report.score.metric, report.score.all)]]
    print_table(rows, right=(1, 2, 3))
    for name, error in report.failed:
        note(f"sample '{name}' has no answer: {error}")


def _row(name: str, tally: Tally) -> tuple[str, str, str, str]:
    return name, f"{100 * tally.score:.1f} %", str(tally.samples), str(tally.failures)
