"""`nvlm-build sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nvlm_deploy.cli.measuring import measuring_options, parse_formats

if TYPE_CHECKING:
    from nvlm_deploy.config.sensitivity import Granularity, SensitivityReport


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--formats",
    metavar="A,B",
    default="int4-awq-vit-int4wo,int4-awq-vit-int8,int8-sq-vit-int8",
    show_default=True,
    help="Recipes; each one gives a format for every part.",
)
@measuring_options
@click.option("-o", "--output", metavar="REPORT", type=click.Path(path_type=Path), help="Write JSON here.")
@click.option(
    "--plot", metavar="IMAGE", type=click.Path(path_type=Path), help="Draw a .png or .svg (extra: plots)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sensitivity(
    checkpoint: Path,
    formats: str,
    calibration: str,
    prompts: str | None,
    count: int,
    overrides: tuple[str, ...],
    by: Granularity,
    device: str,
    local: bool,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure what a checkpoint loses when one layer is quantized.

    For every layer, the projector and lm_head, and every format: the KL divergence of the logits from FP32's,
    with only that layer quantized. The whole model is held in FP32; --local holds one layer.
    """
    from nvlm_deploy.cli.output import human_bytes, note, print_json, progress_bars
    from nvlm_deploy.pipeline.atomic import check_output
    from nvlm_deploy.pipeline.resumable import write_whole
    from nvlm_deploy.pipeline.sensitivity import SensitivityRequest, plan_sensitivity, run_sensitivity
    from nvlm_deploy.sensitivity.plot import check_plot, write_plot

    for path in filter(None, (output, plot)):
        check_output(path)
    if plot is not None:
        check_plot(plot)
    names = parse_formats(formats)
    request = SensitivityRequest(checkpoint, names, calibration, prompts, count, overrides, device, local, by)
    plan = plan_sensitivity(request)
    held = "the largest layer" if local else "the whole model"
    note(f"{held} is held in FP32: {human_bytes(plan.memory)}")
    with progress_bars() as progress:
        report = run_sensitivity(plan, progress)
    if output is not None:
        write_whole(output, (report.model_dump_json(indent=2) + "\n").encode())
    if plot is not None:
        write_plot(report, plot)
    print_json(report.model_dump(mode="json")) if as_json else _print_report(report)


def _print_report(report: SensitivityReport) -> None:
    from nvlm_deploy.cli.output import print_table

    measured = {"kl": "KL divergence, nats", "relative-error": "relative squared error"}[report.measure]
    prompts = report.prompts
    click.echo(
        f"{measured}, one layer quantized at a time; {prompts.count} prompts, {prompts.positions} positions"
    )
    for parts in (("vision", "projector"), ("language", "lm_head")):
        labels = report.labels(*parts)
        rows = [("layer", *labels)]
        for unit in report.units:
            if unit.part in parts:
                found = [unit.option(label) for label in labels]
                rows.append((unit.name, *("-" if o is None else _loss(o.loss) for o in found)))
        click.echo()
        print_table(rows, right=range(1, len(labels) + 1))


def _loss(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.1e}"
