"""`nvlm-build quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.pipeline.quantize import QuantizeResult
    from nvlm_deploy.pipeline.quantize_plan import QuantizePlan


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--recipe", metavar="NAME", required=True, help="How numbers are stored: nvlm-build recipes.")
@click.option(
    "--calibration",
    metavar="SET",
    default="documents",
    show_default=True,
    help="What the model is shown: nvlm-build calibration, or a .yaml file.",
)
@click.option("--target", metavar="NAME", help="Refuse what this device cannot run: nvlm-build targets.")
@click.option("--device", metavar="DEVICE", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a value of the recipe (weights.language.group_size=64) or set (calibration.count=32).",
)
@click.option("-o", "--output", metavar="QUANTIZED", required=True, type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Print the plan and quantize nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def quantize(
    checkpoint: Path,
    recipe: str,
    calibration: str,
    target: str | None,
    device: str,
    overrides: tuple[str, ...],
    output: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Quantize a checkpoint layer by layer, calibrated on images.

    CHECKPOINT is a directory in the layout of the released NVLM-D. QUANTIZED is the same model in the
    unified layout of ModelOpt, which `nvlm-build engine`, vLLM and TensorRT-LLM read; it must not exist.
    A run that was stopped continues behind its last finished layer.
    """
    from nvlm_deploy.cli.output import note, print_json, progress_bars
    from nvlm_deploy.pipeline.quantize import quantize_checkpoint
    from nvlm_deploy.pipeline.quantize_plan import QuantizeRequest, plan_quantize

    request = QuantizeRequest(checkpoint, recipe, output, calibration, target, overrides, device)
    plan = plan_quantize(request)
    if dry_run:
        print_json(plan.to_dict()) if as_json else _print_plan(plan)
        return
    with progress_bars() as progress:
        result = quantize_checkpoint(plan, progress)
    for warning in (result.manifest["calibration"] or {}).get("warnings", ()):
        note(warning)
    print_json(result.manifest) if as_json else _print_result(plan, result)


def _print_plan(plan: QuantizePlan) -> None:
    from nvlm_deploy.cli.output import print_sizes, print_table

    calibration = plan.calibration
    shown = f"{calibration.name}: {calibration.description}" if calibration else "not needed"
    print_table(
        [
            ("checkpoint", str(plan.checkpoint)),
            ("quantized", str(plan.output)),
            ("recipe", f"{plan.recipe.name}: {plan.recipe.description}"),
            ("calibration", shown),
            ("device", plan.device),
        ]
    )
    click.echo()
    print_sizes(plan.sizes)


def _print_result(plan: QuantizePlan, result: QuantizeResult) -> None:
    from nvlm_deploy.cli.output import human_bytes, print_sizes

    print_sizes(plan.sizes)
    click.echo()
    size = sum(path.stat().st_size for path in result.checkpoint.glob("*.safetensors"))
    seconds = sum(step["seconds"] for step in result.manifest["steps"])
    click.echo(f"{result.checkpoint}: {human_bytes(size)} of weights, quantized in {seconds:.1f} s")
