"""`nvlm-eval documents`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.eval.exact_match import ExactMatch


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=1), default=500, show_default=True, help="Questions to ask.")
@click.option(
    "--start", type=click.IntRange(min=0), default=0, show_default=True, help="First held-out page."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every miss.")
def documents(source: Path, count: int, start: int, as_json: bool) -> None:
    """Exact match on held-out generated documents.

    SOURCE is an engine bundle, or a checkpoint, which then answers in PyTorch with FP32.
    """
    from nvlm_deploy.cli.output import print_json, progress_bars
    from nvlm_deploy.config.model import NvlmConfig
    from nvlm_deploy.eval.answerers import open_answerer
    from nvlm_deploy.eval.exact_match import exact_match
    from nvlm_deploy.synthetic.documents import samples

    answer = open_answerer(source)
    pages = samples("heldout", count, start, NvlmConfig.from_directory(source).tile_size)
    with progress_bars() as progress:
        report = exact_match(pages, answer, lambda done: progress("documents", done, count))
    print_json(report.to_dict()) if as_json else _print_report(report)


def _print_report(report: ExactMatch) -> None:
    from nvlm_deploy.cli.output import print_table

    rows = [("documents", "right", "asked", "share")]
    totals = ("all", sum(report.right.values()), sum(report.asked.values()))
    kinds = [(kind, report.right[kind], report.asked[kind]) for kind in sorted(report.asked)]
    for kind, right, asked in [*kinds, totals]:
        rows.append((kind, str(right), str(asked), f"{100 * right / asked:.1f} %"))
    print_table(rows, right=(1, 2, 3))
