"""`nvlm-bench shapes`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.bench.run import Report


@click.command()
@click.option("--shape", metavar="NAME", default="nvlm-d-0.5b", show_default=True, help="Sizes of the model.")
@click.option(
    "--recipe", "recipes", metavar="NAME", multiple=True, help="Engines to measure; may be repeated."
)
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--decode-tokens", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Default: all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def shapes(
    shape: str,
    recipes: tuple[str, ...],
    prompt_tokens: int,
    decode_tokens: int,
    rounds: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure engines against transformers on random weights of a named shape.

    The checkpoint and the engines are made on the spot, in a temporary directory. Errors are
    relative to transformers in FP32 on the same weights.
    """
    from nvlm_deploy.bench.run import Workload
    from nvlm_deploy.bench.shapes import DEFAULT_RECIPES, bench_shape
    from nvlm_deploy.cli.output import print_json, progress_bars

    workload = Workload(prompt_tokens, decode_tokens, rounds)
    with tempfile.TemporaryDirectory(prefix="nvlm-bench-") as directory, progress_bars() as progress:
        report = bench_shape(shape, recipes or DEFAULT_RECIPES, workload, threads, Path(directory), progress)
    print_json(report.to_dict()) if as_json else _print_report(report)


def _print_report(report: Report) -> None:
    from nvlm_deploy.cli.output import print_table

    facts = ", ".join(f"{key} {value}" for key, value in report.environment.items())
    click.echo(f"{report.shape}, random weights, median of {report.workload.rounds} rounds ({facts})\n")
    prompt, decode = report.workload.prompt_tokens, report.workload.decode_tokens
    header = (
        "subject",
        "weights MB",
        "load s",
        "vision ms/tile",
        f"pp{prompt} tok/s",
        f"tg{decode} tok/s",
        "speed-up vision / prefill / decode",
        "error visual / logits",
        "top token",
    )
    rows = [header]
    for row in report.rows():
        rows.append(
            (
                row["subject"],
                f"{row['weights_mb']:.0f}",
                f"{row['load_s']:.1f}",
                f"{row['vision_ms_per_tile']:.0f}",
                f"{row[f'pp{prompt}_tok_s']:.0f}",
                f"{row[f'tg{decode}_tok_s']:.1f}",
                f"{row['vision_x']:.2f} / {row['prefill_x']:.2f} / {row['decode_x']:.2f}",
                f"{row['visual_tokens_error']:.1e} / {row['logits_error']:.1e}",
                "same" if row["same_top_token"] else "other",
            )
        )
    print_table(rows, right=(1, 2, 3, 4, 5, 6, 7))
