"""`nvlm-build import-megatron`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="import-megatron")
@click.argument("source", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--config",
    "hf_dir",
    metavar="HF_DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="Where config, tokenizer and preprocessor files come from.",
)
@click.option("-o", "--output", metavar="CHECKPOINT", required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def import_megatron(source: Path, hf_dir: Path, output: Path, as_json: bool) -> None:
    """Convert a Megatron-core checkpoint to the released layout.

    DIR holds iter_*/mp_rank_*/model_optim_rng.pt, of any tensor and pipeline parallelism. The files
    are opened without running any code that is in them.
    """
    from nvlm_deploy.cli.output import human_bytes, print_json, progress_bars
    from nvlm_deploy.pipeline.convert import convert_megatron

    with progress_bars() as progress:
        total = convert_megatron(source, hf_dir, output, progress).total
    if as_json:
        print_json({"checkpoint": str(output), "tensors": total.tensors, "bytes": total.bytes})
    else:
        click.echo(f"{output}: {total.tensors:,} tensors, {human_bytes(total.bytes)}")
