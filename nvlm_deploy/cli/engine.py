"""`nvlm-build engine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.pipeline.engine import BuildResult
    from nvlm_deploy.pipeline.plan import EnginePlan
    from nvlm_deploy.progress import ProgressCallback
    from nvlm_deploy.verify.report import VerifyReport


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    metavar="NAME",
    help="How numbers are stored: nvlm-build recipes. A quantized checkpoint has its own.",
)
@click.option("--target", metavar="NAME", required=True, help="The device: nvlm-build targets.")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a value of the recipe (weights.vision.group_size=64), the target (target.max_context=4096) "
    "or the calibration set (calibration.count=32).",
)
@click.option(
    "--calibration",
    metavar="SET",
    default="documents",
    show_default=True,
    help="What the model is shown if the recipe is calibrated: nvlm-build calibration, or a .yaml file.",
)
@click.option(
    "--device",
    metavar="DEVICE",
    default="cpu",
    show_default=True,
    help="Where it is shown: cpu, cuda or cuda:N.",
)
@click.option(
    "--against",
    metavar="RELEASED",
    type=click.Path(path_type=Path),
    help="What to verify the engine with, if CHECKPOINT is quantized.",
)
@click.option("--tp", metavar="N", type=click.IntRange(1), default=1, help="GPUs that split every layer.")
@click.option(
    "--pp", metavar="N", type=click.IntRange(1), default=1, help="GPUs that have the layers in turn."
)
@click.option("--kit", is_flag=True, help="Write a build kit even if the engine could be compiled here.")
@click.option("--no-verify", is_flag=True, help="Do not hold the engine against the checkpoint at the end.")
@click.option("-o", "--output", metavar="BUNDLE", required=True, type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Print the plan and build nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def engine(
    checkpoint: Path,
    recipe: str | None,
    target: str,
    overrides: tuple[str, ...],
    calibration: str,
    device: str,
    against: Path | None,
    tp: int,
    pp: int,
    kit: bool,
    no_verify: bool,
    output: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build the engine bundle of a checkpoint.

    CHECKPOINT is a directory in the layout of the released NVLM-D: config.json, safetensors and
    tokenizer files; or what `nvlm-build quantize` made of one. A calibrated recipe quantizes a released
    checkpoint first. BUNDLE must not exist; it appears whole or not at all.

    Engines of TensorRT and TensorRT-LLM are compiled on their device. Elsewhere BUNDLE becomes a build kit:
    copy it to the device, and run nvlm-build compile there.

    At the end a few questions are asked of the engine and of the checkpoint. An engine that differs too
    much stays where it is, marked as failed, and the exit code is 4; `nvlm-build verify` says more.
    """
    from nvlm_deploy.cli.output import note, print_json, progress_bars
    from nvlm_deploy.pipeline.engine import build_engine_bundle
    from nvlm_deploy.pipeline.plan import BuildRequest, plan_engine
    from nvlm_deploy.planner import Parallel

    plan = plan_engine(
        BuildRequest(checkpoint, recipe, target, output, overrides, calibration, device, Parallel(tp, pp))
    )
    for text in plan.notes:
        note(text)
    if dry_run:
        print_json(plan.to_dict()) if as_json else _print_plan(plan)
        plan.device.require_fit()
        return
    released = None if no_verify else against or plan.released
    if kit or _says_why_a_kit(plan):
        _write_kit(plan, released, device, as_json)
        return
    if plan.target.backend == "tensorrt_llm":
        _build_through_kit(plan, released, device, as_json)
        return
    with progress_bars() as progress:
        result = build_engine_bundle(plan, progress)
        released = None if no_verify or not plan.verifiable_here else against or plan.released
        report = _verify(result.bundle, released, device, progress) if released is not None else None
    if not plan.verifiable_here:
        note("not verified: its graphs are compiled for a GPU, and were checked before that")
    elif released is None and not no_verify:
        note("not verified: give --against the released checkpoint")
    if as_json:
        print_json({**result.to_dict(), "verification": report.summary() if report else None})
    else:
        _print_result(plan, result)
    if report is not None:
        report.require_passed()
        note(f"{len(report.checks)} checks against {released} passed")


def _says_why_a_kit(plan: EnginePlan) -> bool:
    """Whether the engine cannot be compiled here; says why."""
    from nvlm_deploy.cli.output import note
    from nvlm_deploy.pipeline.kit import missing_for

    missing = missing_for(plan.target)
    if missing:
        note(f"engines for {plan.target.name} cannot be compiled here, so this is a build kit: {missing[0]}")
    return bool(missing)


def _build_through_kit(plan: EnginePlan, released: Path | None, device: str, as_json: bool) -> None:
    from nvlm_deploy.cli.output import print_json, progress_bars
    from nvlm_deploy.pipeline.build_here import build_through_kit
    from nvlm_deploy.pipeline.kit import KitOptions

    with progress_bars() as progress:
        result, report = build_through_kit(plan, KitOptions(released, device), progress)
    if as_json:
        print_json({**result.to_dict(), "verification": report.summary() if report else None})
    else:
        _print_result(plan, result)
    if report is not None:
        report.require_passed()


def _write_kit(plan: EnginePlan, released: Path | None, device: str, as_json: bool) -> None:
    from nvlm_deploy.cli.output import human_bytes, note, print_json, progress_bars
    from nvlm_deploy.pipeline.kit import KitOptions, write_kit

    with progress_bars() as progress:
        result = write_kit(plan, KitOptions(released, device), progress)
    if plan.config.cross_attention is not None:
        note(f"no probes are in the kit of an NVLM-{plan.config.variant}: nothing asks them yet")
    elif released is None:
        note("the kit has no probes: give --against the released checkpoint, and leave out --no-verify")
    if as_json:
        print_json(result.to_dict())
        return
    size = human_bytes(sum(entry.size for entry in result.kit.files))
    click.echo(f"{plan.output}: a build kit of {size}, written in {result.seconds:.1f} s")
    click.echo(f"on the device: nvlm-build compile {plan.output.name} -o BUNDLE")


def _verify(bundle: Path, released: Path, device: str, progress: ProgressCallback) -> VerifyReport:
    from nvlm_deploy.pipeline.verify import QUICK_SAMPLES, VerifyOptions, verify_bundle

    return verify_bundle(bundle, released, VerifyOptions(QUICK_SAMPLES, device), progress)


def _print_plan(plan: EnginePlan) -> None:
    from nvlm_deploy.cli.output import human_bytes, print_sizes, print_table

    print_table(
        [
            ("checkpoint", str(plan.checkpoint)),
            ("bundle", str(plan.output)),
            ("recipe", f"{plan.recipe.name}: {plan.recipe.description}"),
            ("target", f"{plan.target.name}: {plan.target.description}"),
            ("context", f"{plan.context:,} tokens"),
            ("disk", f"{human_bytes(plan.disk_needed)} needed, {human_bytes(plan.disk_free)} free"),
            ("memory", _memory(plan)),
            ("files", ", ".join(plan.files)),
        ]
    )
    click.echo()
    print_sizes(plan.sizes)


def _memory(plan: EnginePlan) -> str:
    from nvlm_deploy.cli.output import human_bytes

    usable, needed = plan.target.usable_bytes, human_bytes(plan.device.memory.total)
    if usable is None:
        return f"{needed} to run; that of {plan.target.name} is not known"
    return f"{needed} to run, {human_bytes(usable)} usable: {'fits' if plan.device.fits else 'does not fit'}"


def _print_result(plan: EnginePlan, result: BuildResult) -> None:
    from nvlm_deploy.cli.output import human_bytes, print_sizes

    print_sizes(plan.sizes)
    click.echo()
    size = human_bytes(sum(entry.size for entry in result.manifest.files))
    click.echo(f"{plan.output}: {size}, built in {result.seconds:.1f} s")
