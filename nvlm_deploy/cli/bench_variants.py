"""`nvlm-bench variants`."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.bench.comparison import Comparison


@click.command()
@click.option("--shape", metavar="NAME", default="nvlm-d-0.5b", show_default=True, help="Sizes of all three.")
@click.option(
    "--every",
    "interval",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Decoder layers from one with cross-attention to the next.",
)
@click.option("--recipe", metavar="NAME", default="int4-rtn-vit-int8", show_default=True)
@click.option(
    "--tiles", metavar="N,N", default="1,3,5,7", show_default=True, help="Tiles of images, with thumbnail."
)
@click.option("--decode-tokens", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--vision-rounds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Rounds in which tiles go through the tower.",
)
@click.option(
    "--training-shape",
    metavar="NAME",
    default="nvlm-d-0.1b",
    show_default=True,
    help="Sizes of the models that take training steps.",
)
@click.option(
    "--training-rounds",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Training steps that are timed; 0 for none.",
)
@click.option(
    "--trained",
    metavar="CHECKPOINT",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Also ask a trained checkpoint, itself and as int4-rtn engine; one for each variant.",
)
@click.option(
    "--questions",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Held-out questions that --trained are asked.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Default: all cores.")
@click.option(
    "-o",
    "--output",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path),
    help="Write variants.json, variants.md and, with the extra plots, pictures here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def variants(
    shape: str,
    interval: int,
    recipe: str,
    tiles: str,
    decode_tokens: int,
    rounds: int,
    vision_rounds: int,
    training_shape: str,
    training_rounds: int,
    trained: tuple[Path, ...],
    questions: int,
    threads: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure NVLM-D, X and H of equal width side by side.

    Weights are random. Checkpoints and engines are made on the spot, in a temporary directory. What is
    measured: the time to the first token by tiles and by stage, decoding, memory, the engine's size; and
    steps of training in PyTorch.
    """
    from nvlm_deploy.bench.comparison import ComparisonSettings, compare_variants
    from nvlm_deploy.bench.variant_report import VariantWorkload
    from nvlm_deploy.bench.variant_training import TrainingWorkload
    from nvlm_deploy.bench.variants import VariantSettings
    from nvlm_deploy.cli.output import print_json, progress_bars

    workload = VariantWorkload(_numbers(tiles), decode_tokens, rounds, vision_rounds)
    training = TrainingWorkload(training_shape, tiles=max(workload.tiles), rounds=training_rounds)
    settings = ComparisonSettings(
        VariantSettings(shape, interval, recipe, workload, threads),
        training if training_rounds else None,
        trained,
        questions=questions,
    )
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nvlm-bench-") as directory, progress_bars() as progress:
        report = compare_variants(settings, Path(directory), progress)
    if output is not None:
        _write(report, output)
    print_json(report.to_dict()) if as_json else _print_report(report)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise click.BadParameter(f"'{text}' is no list of numbers such as 1,3,5,7") from None


def _write(report: Comparison, output: Path) -> None:
    import json

    from nvlm_deploy.bench.variant_plot import draw_training, draw_variants
    from nvlm_deploy.cli.output import note
    from nvlm_deploy.errors import UnsuitableError

    (output / "variants.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    page = report.markdown(shlex.join(["nvlm-bench", *sys.argv[1:]]))
    try:
        draw_variants(report.engines, output / "variants.png")
        page += "\n![Seconds to the first token](variants.png)\n"
        if report.training is not None:
            draw_training(report.training, output / "training.png")
            page += "\n![Training throughput beside the paper's](training.png)\n"
    except UnsuitableError as error:
        note(f"no picture: {error.message}; {error.hint}")
    (output / "variants.md").write_text(page, encoding="utf-8")


def _print_report(report: Comparison) -> None:
    from nvlm_deploy.cli.output import print_table

    engines = report.engines
    facts = ", ".join(f"{key} {value}" for key, value in engines.environment.items())
    click.echo(
        f"{engines.shape}, {engines.recipe}, cross-attention every {engines.interval} layers, "
        f"random weights, median of {engines.workload.rounds} rounds ({facts})"
    )
    for sentence, table in report.tables():
        click.echo(f"\n{sentence}")
        print_table(table, right=tuple(range(1, len(table[0]))))
