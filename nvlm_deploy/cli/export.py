"""`nvlm-build export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.export.serving import ServingReport


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_name",
    metavar="FORMAT",
    required=True,
    help="trtllm: what TensorRT-LLM builds the language model's engine from. hf, vllm, hf-decoder: what "
    "servers open.",
)
@click.option("--tp", type=int, help="trtllm: GPUs that share every layer; 1 if not given.")
@click.option("--pp", type=int, help="trtllm: GPUs that have the layers one after the other; 1 if not given.")
@click.option("--version", metavar="RELEASE", help="trtllm: 1.2 (default) or 0.12-jetson.")
@click.option(
    "--dtype", metavar="DTYPE", help="trtllm: bfloat16 (default) or float16, for all that has 16 bits."
)
@click.option(
    "--embedding",
    metavar="HOW",
    help="trtllm: with --tp, the embedding is split (default) or replicated on every GPU.",
)
@click.option(
    "--check",
    is_flag=True,
    help="hf, vllm, hf-decoder: hold the result against what the servers read; without -o, CHECKPOINT.",
)
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    checkpoint: Path,
    format_name: str,
    tp: int | None,
    pp: int | None,
    version: str | None,
    dtype: str | None,
    embedding: str | None,
    check: bool,
    output: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint in the layout of another program, or check one.

    CHECKPOINT is in the layout of the released NVLM-D, or what `nvlm-build quantize` made of one. With the
    format trtllm, DIR gets config.json and a file of tensors for each GPU: the language model alone, because
    the vision tower becomes an engine of its own. DIR must not exist. A run that was stopped continues behind
    its last finished layer.

    The formats hf (as it is), vllm (with the config that vLLM answers rightly with) and hf-decoder (the
    language model alone, for SGLang and TensorRT-LLM 1.3) are directories that servers open: docs/serving.
    With --check the exit code is 4 if no server that the format is for can.
    """
    from nvlm_deploy.cli.output import human_bytes, note, print_json, print_table, progress_bars
    from nvlm_deploy.errors import UsageError
    from nvlm_deploy.pipeline.export import ExportRequest, plan_export
    from nvlm_deploy.pipeline.export_serving import check_export, require_one

    if output is None:
        if not check:
            raise UsageError(
                "there is no output", hint="name one with -o, or look at CHECKPOINT with --check"
            )
        reports = check_export(format_name, checkpoint)
        print_json([report.to_dict() for report in reports]) if as_json else _print(reports)
        require_one(reports)
        return
    options = {"tp": tp, "pp": pp, "version": version, "dtype": dtype, "embedding": embedding}
    plan = plan_export(format_name, ExportRequest(checkpoint, output, options))
    for text in plan.notes:
        note(text)
    if dry_run:
        print_json(plan.to_dict()) if as_json else print_table(plan.rows())
        return
    with progress_bars() as progress:
        result = plan.run(progress)
    reports = check_export(format_name, output) if check else ()
    if as_json:
        print_json({**result, **({"check": [report.to_dict() for report in reports]} if check else {})})
    else:
        size = human_bytes(sum(result["files"].values()))
        click.echo(f"{output}: {size} in {len(result['files'])} files, written in {result['seconds']:.1f} s")
        _print(reports)
    require_one(reports)


def _print(reports: Sequence[ServingReport]) -> None:
    for report in reports:
        verdict = f"{len(report.errors)} errors" if report.errors else "ok"
        click.echo(f"{report.loader}: {verdict}, {report.tensors} tensors")
        for finding in report.findings:
            click.echo(f"  {finding.severity:<7}  {finding.where}: {finding.text}")
