"""`nvlm-build targets`."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def targets(name: str | None, as_json: bool) -> None:
    """List the targets, or show one.

    A target is the device that an engine is built for. NAME is a shipped target or a .yaml file.
    """
    from nvlm_deploy.cli.catalogs import show_catalog
    from nvlm_deploy.config.target import Target

    show_catalog("target", Target, name, as_json)
