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
    from nvlm_deploy.cli.catalogs import load_catalog, show_catalog
    from nvlm_deploy.cli.output import print_table
    from nvlm_deploy.config.target import Target, capability

    if name is not None or as_json:
        show_catalog("target", Target, name, as_json)
        return
    rows = [("target", "SM", "backend", "")]
    for target in load_catalog("target", Target):
        sm = "-" if target.sm is None else capability(target.sm)
        rows.append((target.name, sm, target.backend, target.description))
    print_table(rows, right=(1,))
