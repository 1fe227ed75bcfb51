"""`nvlm-build compile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.pipeline.compile_plan import CompilePlan


@click.command()
@click.argument("kit", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="BUNDLE", required=True, type=click.Path(path_type=Path))
@click.option(
    "--max-build-memory",
    metavar="SIZE",
    help="End compilers that take more memory than this, for example 48GB.  [default: what is available]",
)
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Ranks that are built side by side, each on a GPU of its own.",
)
@click.option("--no-verify", is_flag=True, help="Do not hold the engine against the kit's probes at the end.")
@click.option("--dry-run", is_flag=True, help="Print the plan, and what this machine lacks; compile nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compile_command(
    kit: Path,
    output: Path,
    max_build_memory: str | None,
    workers: int,
    no_verify: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compile a build kit into an engine bundle, on its device.

    KIT is what `nvlm-build engine` writes for devices whose engines cannot be compiled elsewhere. The device
    is looked at first, and everything that it lacks is named. A run that was stopped goes on behind its last
    finished stage. At the end the engine is asked the kit's probes; the exit code is 4 if it differs
    too much.
    """
    from nvlm_deploy.cli.output import note, parse_size, print_json, progress_bars
    from nvlm_deploy.pipeline.compile import compile_kit
    from nvlm_deploy.pipeline.compile_plan import CompileRequest, plan_compile
    from nvlm_deploy.pipeline.verify_kit import verify_with_kit

    limit = None if max_build_memory is None else parse_size("--max-build-memory", max_build_memory)
    plan = plan_compile(CompileRequest(kit, output, limit, workers))
    if dry_run:
        print_json(plan.to_dict()) if as_json else _print_plan(plan)
        return
    with progress_bars() as progress:
        result = compile_kit(plan, progress)
        left_out = _why_unverified(plan, no_verify)
        report = None if left_out else verify_with_kit(result.bundle, kit)
    if left_out:
        note(f"not verified: {left_out}")
    if as_json:
        print_json({**result.to_dict(), "verification": report.summary() if report else None})
    else:
        click.echo(f"{output}: compiled in {result.seconds:.0f} s")
    if report is not None:
        report.require_passed()
        note(f"{len(report.checks)} checks against the probes passed")


def _why_unverified(plan: CompilePlan, no_verify: bool) -> str | None:
    """Why the engine is not asked the probes; None if it is."""
    if no_verify:
        return "--no-verify"
    if not plan.kit.probes:
        return "the kit has no probes"
    ranks = plan.settings.world_size if plan.settings else 1
    if ranks > 1:
        request = plan.request
        return f"mpirun -n {ranks} nvlm-build verify {request.output} --against {request.kit}"
    return None


def _print_plan(plan: CompilePlan) -> None:
    from nvlm_deploy.cli.output import human_bytes, note, print_table
    from nvlm_deploy.pipeline.compile_plan import missing_here

    bundle = plan.kit.bundle
    limit = "none" if plan.memory_limit is None else human_bytes(plan.memory_limit)
    print_table(
        [
            ("kit", str(plan.request.kit)),
            ("bundle", str(plan.request.output)),
            ("recipe", str(bundle.recipe["name"])),
            ("target", str(bundle.target["name"])),
            ("stages", "; ".join(stage.name for stage in plan.stages)),
            ("memory", f"at most {limit} for the compilers"),
            ("disk", f"about {human_bytes(plan.disk_needed)}"),
        ]
    )
    if plan.arguments is not None:
        for owner, values in plan.arguments.to_dict().items():
            click.echo(f"\n{owner} of TensorRT-LLM {plan.release}")
            print_table([(name, str(value)) for name, value in values.items()], indent="  ")
    for missing in missing_here(plan):
        note(f"missing here: {missing}")
