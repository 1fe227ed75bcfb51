"""`nvlm-build recipes`."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes, or show one.

    A recipe says how an engine's numbers are stored. NAME is a shipped recipe or a .yaml file.
    """
    from nvlm_deploy.cli.catalogs import show_catalog
    from nvlm_deploy.config.recipe import Recipe

    show_catalog("recipe", Recipe, name, as_json)
