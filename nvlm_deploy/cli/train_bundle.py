"""`nvlm-train export-bundle`."""

from __future__ import annotations

from pathlib import Path

import click

from nvlm_deploy.cli.train import overriding

_CALIBRATION, _PROBES = 128, 40


@click.command(name="export-bundle")
@click.argument("config", metavar="CONFIG")
@overriding
@click.option("-o", "--output", metavar="DIRECTORY", required=True, type=click.Path(path_type=Path))
@click.option(
    "--calibration",
    metavar="N",
    type=click.IntRange(min=1),
    default=_CALIBRATION,
    show_default=True,
    help="Samples of the calibration set, from what the run was shown.",
)
@click.option(
    "--probes",
    metavar="N",
    type=click.IntRange(min=1),
    default=_PROBES,
    show_default=True,
    help="Questions to verify with, from what was held out (data.held_out).",
)
@click.option(
    "--licence",
    metavar="TEXT",
    default="that of the training data",
    show_default=True,
    help="Of the data; the calibration set says it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export_bundle(
    config: str,
    overrides: tuple[str, ...],
    output: Path,
    calibration: int,
    probes: int,
    licence: str,
    as_json: bool,
) -> None:
    """Put a trained checkpoint, a calibration set and probes of its data into one directory.

    CONFIG and --set are those of the run. The directory has checkpoint/, calibration.yaml with its samples,
    probes/probes.jsonl and bundle.json, and the commands that take it are printed.
    """
    from nvlm_deploy.cli.output import note, print_json
    from nvlm_deploy.cli.train import plan_of
    from nvlm_deploy.train.bundle import BundleOptions
    from nvlm_deploy.train.bundle import export_bundle as export

    wanted = BundleOptions(calibration, probes, licence)
    made = export(plan_of(config, overrides), output, wanted)
    if made.calibration < calibration or made.probes < probes:
        note(f"the data has {made.calibration:,} samples to calibrate with and {made.probes:,} probes")
    if as_json:
        print_json({"output": str(output), "calibration": made.calibration, "probes": made.probes})
        return
    click.echo(f"nvlm-build engine {output}/checkpoint --calibration {output}/calibration.yaml -o ENGINE")
    click.echo(
        f"nvlm-build verify ENGINE --against {output}/checkpoint --probes {output}/probes/probes.jsonl"
    )
