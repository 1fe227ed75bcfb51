"""`nvlm-build export`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_name",
    metavar="FORMAT",
    required=True,
    help="trtllm: what TensorRT-LLM builds the language model's engine from.",
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
@click.option("-o", "--output", metavar="DIR", required=True, type=click.Path(path_type=Path))
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
    output: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint in the layout of another program.

    CHECKPOINT is in the layout of the released NVLM-D, or what `nvlm-build quantize` made of one. With the
    format trtllm, DIR gets config.json and a file of tensors for each GPU: the language model alone, because
    the vision tower becomes an engine of its own. DIR must not exist. A run that was stopped continues behind
    its last finished layer.
    """
    from nvlm_deploy.cli.output import human_bytes, note, print_json, print_table, progress_bars
    from nvlm_deploy.pipeline.export import ExportRequest, plan_export

    options = {"tp": tp, "pp": pp, "version": version, "dtype": dtype, "embedding": embedding}
    plan = plan_export(format_name, ExportRequest(checkpoint, output, options))
    for text in plan.notes:
        note(text)
    if dry_run:
        print_json(plan.to_dict()) if as_json else print_table(plan.rows())
        return
    with progress_bars() as progress:
        result = plan.run(progress)
    if as_json:
        print_json(result)
    else:
        size = human_bytes(sum(result["files"].values()))
        click.echo(f"{output}: {size} in {len(result['files'])} files, written in {result['seconds']:.1f} s")
