"""`nvlm-build calibration`."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibration(name: str | None, as_json: bool) -> None:
    """List the calibration sets, or show one.

    A calibration set is what a model is shown while it is quantized. NAME is a shipped set or a .yaml file.
    """
    from nvlm_deploy.cli.catalogs import show_catalog
    from nvlm_deploy.config.calibration import CalibrationSet

    show_catalog("calibration set", CalibrationSet, name, as_json)
