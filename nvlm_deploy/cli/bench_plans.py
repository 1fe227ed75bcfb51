"""`nvlm-bench plans`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.bench.plans import PlanRow


@click.command()
@click.option("--shape", metavar="NAME", default="nvlm-d-0.5b", show_default=True, help="Sizes of the model.")
@click.option("--sm", "capabilities", metavar="SM", type=int, multiple=True, help="89 for 8.9; repeatable.")
@click.option("--context", type=click.IntRange(min=1), default=4096, show_default=True, help="Tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plans(shape: str, capabilities: tuple[int, ...], context: int, as_json: bool) -> None:
    """Compile TensorRT-RTX plans of a named shape: sizes and build times.

    Weights are random, and no GPU is needed. All that is made is in a temporary directory, and removed.
    """
    from nvlm_deploy.bench.plans import DEFAULT_CAPABILITIES, bench_plans
    from nvlm_deploy.cli.output import print_json, progress_bars

    with tempfile.TemporaryDirectory(prefix="nvlm-bench-") as directory, progress_bars() as progress:
        chosen = capabilities or DEFAULT_CAPABILITIES
        rows = list(bench_plans(shape, chosen, context, Path(directory), progress))
    print_json([row.to_dict() for row in rows]) if as_json else _print_rows(rows)


def _print_rows(rows: list[PlanRow]) -> None:
    from nvlm_deploy.cli.output import print_table

    table = [("part", "format", "SM", "weights MB", "plan MB", "build s", "CPU s", "peak MB")]
    for row in rows:
        made = ("refused", "", "", "") if row.refused else _figures(row)
        table.append((row.part, row.form, str(row.sm), f"{row.weights / 1e6:.1f}", *made))
    print_table(table, right=(2, 3, 4, 5, 6, 7))


def _figures(row: PlanRow) -> tuple[str, str, str, str]:
    return (
        f"{row.bytes / 1e6:.1f}",
        f"{row.seconds:.1f}",
        f"{row.cpu_seconds:.1f}",
        f"{row.peak_bytes / 1e6:.0f}",
    )
