"""`nvlm-bench latency`, `limits` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.bench.compare import ReportComparison
    from nvlm_deploy.bench.samples import SampleReport

_FORMATS = ("table", "md", "json", "jsonl", "csv")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--tiles", metavar="N,N", default="1,3,5,7", show_default=True, help="Tiles of images, with thumbnail."
)
@click.option("--prompt-tokens", metavar="N,N", default="512", show_default=True, help="Prompts, no image.")
@click.option("--depth", metavar="N,N", default="512", show_default=True, help="Prompts before an answer.")
@click.option("--answer-tokens", type=click.IntRange(min=2), default=32, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Default: all cores.")
@click.option("--device", metavar="DEVICE", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--format", "form", type=click.Choice(_FORMATS), default="table", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write there and not to stdout.")
def latency(
    bundle: Path,
    tiles: str,
    prompt_tokens: str,
    depth: str,
    answer_tokens: int,
    rounds: int,
    threads: int | None,
    device: str,
    form: str,
    output: Path | None,
) -> None:
    """Time an engine, stage by stage, beside the machine's limits.

    t7 is a question about an image of seven tiles, pp512 a prompt of 512 tokens, tg32@512 an answer of 32
    behind 512; ttft, tpot and e2el are times to the first token, for each further one, and in all.
    """
    from nvlm_deploy.backends.protocol import SessionOptions
    from nvlm_deploy.bench.latency import LatencyWorkload, bench_latency
    from nvlm_deploy.cli.output import progress_bars

    workload = LatencyWorkload(
        _numbers("--tiles", tiles),
        _numbers("--prompt-tokens", prompt_tokens),
        _numbers("--depth", depth),
        answer_tokens,
        rounds,
    )
    with progress_bars() as progress:
        report = bench_latency(bundle, workload, SessionOptions(threads=threads, device=device), progress)
    _write(report, form, output)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    from nvlm_deploy.errors import UsageError

    words = [word for word in text.split(",") if word]
    if not all(word.isdecimal() and int(word) for word in words):
        raise UsageError(f"{option} '{text}' is no list of numbers", hint=f"for example {option} 1,3,7")
    return tuple(map(int, words))


def _write(report: SampleReport, form: str, output: Path | None) -> None:
    import json

    from nvlm_deploy.cli.output import print_table

    if form == "table" and output is None:
        facts = {**report.engine, **report.environment}
        click.echo(", ".join(f"{key} {value}" for key, value in facts.items()) + "\n")
        print_table(report.table(), right=(2, 3, 4, 5, 6))
        return
    texts = {
        "table": report.markdown,
        "md": report.markdown,
        "json": lambda: json.dumps(report.to_dict(), indent=2) + "\n",
        "jsonl": report.jsonl,
        "csv": report.csv,
    }
    text = texts[form]()
    if output is None:
        click.echo(text, nl=False)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")


@click.command()
@click.option("--threads", type=click.IntRange(min=1), help="Default: all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def limits(threads: int | None, as_json: bool) -> None:
    """Measure what this machine can do at most.

    Bytes read from memory and operations of matrix products a second, with the threads that engines use.
    """
    import os

    from nvlm_deploy.bench.limits import measure_limits
    from nvlm_deploy.cli.output import print_json, print_table

    found = measure_limits(threads or os.cpu_count() or 1)
    if as_json:
        print_json(found.to_dict())
        return
    rows = [("threads", str(found.threads)), ("memory, read", f"{found.read_gb_s:.1f} GB/s")]
    rows += [(f"products, {name}", f"{rate:.0f} GOPS") for name, rate in found.gops.items()]
    print_table(rows, right=(1,))


@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.02, show_default=True, help="As a share.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(first: Path, second: Path, threshold: float, as_json: bool) -> None:
    """Compare two reports of latency; exit 4 if the second is slower.

    A row is slower if all of the 95 % interval of the ratio of its medians is beyond the threshold.
    """
    from nvlm_deploy.bench.compare import compare_reports
    from nvlm_deploy.bench.samples import SampleReport
    from nvlm_deploy.cli.output import print_json
    from nvlm_deploy.errors import VerificationError

    comparison = compare_reports(SampleReport.read(first), SampleReport.read(second), threshold)
    print_json(comparison.to_dict()) if as_json else _print_comparison(comparison)
    if comparison.slower:
        raise VerificationError(f"slower than {first}: {', '.join(comparison.slower)}")


def _print_comparison(comparison: ReportComparison) -> None:
    from nvlm_deploy.cli.output import note, print_table

    for name, ours, theirs in comparison.differing:
        note(f"{name} is {ours} in the first and {theirs} in the second")
    for name in comparison.missing:
        note(f"{name} is in one of them alone")
    rows = [("row", "first ms", "second ms", "ratio", "95 % between", "")]
    for row in comparison.rows:
        between = f"{row.low:.3f} and {row.high:.3f}"
        rows.append(
            (
                row.name,
                f"{row.first_ms:.2f}",
                f"{row.second_ms:.2f}",
                f"{row.ratio:.3f}",
                between,
                row.verdict,
            )
        )
    print_table(rows, right=(1, 2, 3))
