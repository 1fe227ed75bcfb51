"""`nvlm-build auto`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nvlm_deploy.cli.measuring import measuring_options, parse_formats

if TYPE_CHECKING:
    from nvlm_deploy.config.sensitivity import Granularity
    from nvlm_deploy.pipeline.auto import AutoResult


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--budget",
    metavar="SIZE",
    required=True,
    help="Mean bits per weight of the matrices (5bits), or bytes of all weights (40GB).",
)
@click.option("--formats", metavar="A,B", default="", help="Recipes; each one gives a format for every part.")
@click.option(
    "--sensitivity",
    "report",
    metavar="REPORT",
    type=click.Path(path_type=Path),
    help="What nvlm-build sensitivity wrote, instead of --formats.",
)
@measuring_options
@click.option("-o", "--output", metavar="RECIPE", required=True, type=click.Path(path_type=Path))
@click.option("--check/--no-check", default=True, help="Measure the recipe as a whole, too; by default yes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def auto(
    checkpoint: Path,
    budget: str,
    formats: str,
    report: Path | None,
    calibration: str,
    prompts: str | None,
    count: int,
    overrides: tuple[str, ...],
    by: Granularity,
    device: str,
    local: bool,
    output: Path,
    check: bool,
    as_json: bool,
) -> None:
    """Write the recipe that loses least within a size, layer by layer.

    Every layer, the projector and lm_head get one of the formats, or 16 bits, so that the sum of the measured
    losses is the least that fits. RECIPE is a .yaml file for --recipe, to be read and edited.
    """
    from nvlm_deploy.cli.output import print_json, progress_bars
    from nvlm_deploy.errors import UsageError
    from nvlm_deploy.pipeline.auto import AutoRequest, plan_auto, run_auto
    from nvlm_deploy.pipeline.sensitivity import SensitivityRequest

    names = parse_formats(formats)
    if not names and report is None:
        raise UsageError("no formats to choose from", hint="give --formats A,B or --sensitivity REPORT")
    measuring = SensitivityRequest(
        checkpoint, names, calibration, prompts, count, overrides, device, local, by
    )
    plan = plan_auto(AutoRequest(measuring, budget, output, report, check))
    with progress_bars() as progress:
        result = run_auto(plan, progress)
    print_json(result.to_dict()) if as_json else _print_result(result)


def _print_result(result: AutoResult) -> None:
    from nvlm_deploy.cli.output import human_bytes, print_table

    assignment, head = result.assignment, "KL" if result.report.measure == "kl" else "error"
    rows = [("layer", "stored as", "bits", head)]
    for each in assignment.units:
        rows.append((each.unit.name, each.option.label, f"{each.bits:.2f}", f"{each.loss:.1e}"))
    print_table(rows, right=(2, 3))
    click.echo()
    choice = assignment.choice
    sums = [("recipe", "bits", f"sum of {head}s")]
    sums.append((result.recipe.name, f"{assignment.bits:.2f}", f"{choice.loss:.2e}"))
    sums += [
        (f"{each.recipe}, all layers", f"{each.bits:.2f}", f"{each.loss:.2e}") for each in result.uniform
    ]
    print_table(sums, right=(1, 2))
    click.echo()
    gap = "" if choice.exact else f"; no choice is below {choice.lower_bound:.2e}"
    click.echo(f"predicted {head} {choice.loss:.2e}: the sum of what was measured layer by layer{gap}")
    if result.measured is not None:
        found = result.measured
        ratio = f", {found.kl / choice.loss:.2f} of the sum" if choice.loss else ""
        click.echo(f"measured KL  {found.kl:.2e}{ratio}; top-1 agreement {100 * found.top1:.1f} %")
    click.echo(
        f"{result.output}: {human_bytes(assignment.nbytes)} of weights, {assignment.bits:.2f} bits a weight"
    )
