"""`nvlm-build calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.calibration import CalibrationSamples, CalibrationSummary
    from nvlm_deploy.progress import ProgressCallback
    from nvlm_deploy.quantization.statistics import ActivationStatistics


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--calibration",
    "name",
    metavar="NAME",
    required=True,
    help="The set: nvlm-build calibration, or a .yaml file.",
)
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a value of the set (count=32, class_weights.visual=0.5).",
)
@click.option(
    "--statistics", is_flag=True, help="Show the set to the model, and count what its layers see and clip."
)
@click.option(
    "--against",
    metavar="NAME",
    help="For --statistics: count what scales from this other set would clip, such as documents-text.",
)
@click.option("--device", metavar="DEVICE", default="cpu", help="For --statistics: cpu, cuda or cuda:N.")
@click.option(
    "--scratch",
    metavar="FOLDER",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="For --statistics: where hidden states are kept meanwhile; the system's folder unless given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibrate(
    checkpoint: Path,
    name: str,
    overrides: tuple[str, ...],
    statistics: bool,
    against: str | None,
    device: str,
    scratch: Path | None,
    as_json: bool,
) -> None:
    """Read a calibration set as a checkpoint's model sees it.

    Every sample is read, tiled and tokenized. CHECKPOINT is a directory with config.json and tokenizer files,
    and for --statistics with its weights, of which one layer is in memory at a time.
    """
    from nvlm_deploy.cli.output import note, print_json, progress_bars

    if not statistics and (against, device, scratch) != (None, "cpu", None):
        raise click.UsageError("--against, --device and --scratch are for --statistics")
    with progress_bars() as progress:
        sets = _load(checkpoint, (name,) if against is None else (name, against), overrides, progress)
        samples = sets[0]
        for warning in samples.summary.warnings:
            note(warning)
        seen = _measure(checkpoint, sets, device, scratch, progress) if statistics else None
    if as_json:
        summary = samples.summary.to_dict()
        print_json(summary if seen is None else {**summary, "against": against, "statistics": seen.to_dict()})
        return
    _print_summary(samples.summary)
    if seen is not None:
        from nvlm_deploy.cli.statistics import print_statistics

        click.echo()
        print_statistics(seen, against)


def _load(
    checkpoint: Path, names: Sequence[str], overrides: Sequence[str], progress: ProgressCallback
) -> list[CalibrationSamples]:
    from nvlm_deploy.calibration import load_samples
    from nvlm_deploy.config.calibration import read_calibration_set
    from nvlm_deploy.config.model import NvlmConfig
    from nvlm_deploy.preprocess import Tokenizer

    sets = [read_calibration_set(name, overrides) for name in names]
    config = NvlmConfig.from_directory(checkpoint)
    tokenizer = Tokenizer.from_directory(checkpoint)
    return [load_samples(spec, config, tokenizer, base_dir, progress) for spec, base_dir in sets]


def _measure(
    checkpoint: Path,
    sets: Sequence[CalibrationSamples],
    device: str,
    scratch: Path | None,
    progress: ProgressCallback,
) -> ActivationStatistics:
    """Statistics of the first set; if there is another, against its ranges."""
    from nvlm_deploy.checkpoint.model_weights import ModelWeights
    from nvlm_deploy.checkpoint.reader import CheckpointReader
    from nvlm_deploy.quantization.statistics import activation_statistics

    weights = ModelWeights(CheckpointReader(checkpoint))
    weights.verify_dummy_heads()
    ranges = None
    for samples in reversed(sets):
        seen = activation_statistics(
            weights, samples, against=ranges, device=device, scratch=scratch, progress=progress
        )
        ranges = seen.ranges
    return seen


def _print_summary(summary: CalibrationSummary) -> None:
    from nvlm_deploy.cli.output import print_table

    source = ", ".join(f"{key}: {value}" for key, value in summary.source.items() if value is not None)
    lost = f"{summary.left_out:,} left out, {summary.shortened:,} shortened"
    print_table(
        [
            ("set", summary.name),
            ("source", source),
            ("licence", summary.licence),
            ("samples", f"{summary.count:,}, seed {summary.seed}"),
            ("limit", f"{summary.max_tokens:,} tokens a sample: {lost}"),
            ("images", f"{summary.images:,} in {summary.tiles:,} tiles"),
            ("digest", summary.digest),
        ]
    )
    click.echo()
    total = sum(summary.tokens.values())
    rows = [("class", "tokens", "share", "weight")]
    for name, count in summary.tokens.items():
        rows.append((name, f"{count:,}", f"{100 * count / total:.1f} %", f"{summary.class_weights[name]:g}"))
    print_table([*rows, ("total", f"{total:,}", "", "")], right=(1, 2, 3))
