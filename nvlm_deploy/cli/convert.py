"""`nvlm-build convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click


@click.command()
@click.option(
    "--from",
    "language",
    metavar="LLM_DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="A Qwen2 or llama-style language model, or an NVLM checkpoint that has one.",
)
@click.option(
    "--vision",
    metavar="VIT_DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="An InternViT with RMSNorm, or an NVLM or InternVL checkpoint that has one.",
)
@click.option("--variant", type=click.Choice(["D", "X", "H"]), required=True)
@click.option(
    "--layers",
    metavar="N,N,...",
    help="Decoder layers with cross-attention.  [default: the last of every 8, as in the 72B]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="For the weights that no part has.")
@click.option("-o", "--output", metavar="CHECKPOINT", required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert(
    language: Path,
    vision: Path,
    variant: Literal["D", "X", "H"],
    layers: str | None,
    seed: int,
    output: Path,
    as_json: bool,
) -> None:
    """Start an NVLM-D, X or H from a language model and a vision tower.

    Projector and cross-attention are new unless LLM_DIR has them, too, and gates are closed: the result
    answers text as the language model does, and has to be trained to see.
    """
    from nvlm_deploy.cli.output import human_bytes, print_json, progress_bars
    from nvlm_deploy.pipeline.convert import AssembleRequest, assemble

    request = AssembleRequest(language, vision, variant, output, _numbers(layers), seed=seed)
    with progress_bars() as progress:
        summary, new = assemble(request, progress)
    if as_json:
        print_json(
            {
                "checkpoint": str(output),
                "tensors": summary.total.tensors,
                "bytes": summary.total.bytes,
                "new_tensors": list(new),
            }
        )
        return
    click.echo(f"{output}: {summary.total.tensors:,} tensors, {human_bytes(summary.total.bytes)}")
    click.echo(f"{len(new):,} of them are new, the first is {new[0]}" if new else "none of them is new")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"'{text}' is no list of numbers, such as 7,15,23", param_hint="--layers"
        ) from None
