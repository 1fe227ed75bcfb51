"""`nvlm-build targets`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.config.target import Target

_HEADINGS = ("target", "SM", "memory", "usable", "GB/s", "TFLOPS", "backends")


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def targets(name: str | None, as_json: bool) -> None:
    """List the targets, or show one.

    A target is the device that an engine is built for. NAME is a shipped target or a .yaml file.
    """
    from nvlm_deploy.cli.catalogs import load_catalog, show_catalog
    from nvlm_deploy.cli.output import print_table
    from nvlm_deploy.config.target import Target

    if name is not None or as_json:
        show_catalog("target", Target, name, as_json)
        return
    rows = [target_row(target) for target in load_catalog("target", Target)]
    print_table([_HEADINGS, *rows], right=(1, 2, 3, 4, 5))
    click.echo(
        "\nmemory, usable: GiB, as sold and as an engine can have it. GB/s: memory bandwidth. TFLOPS: dense, "
        "16 bits.\nThe first backend is the default; --set backend=NAME takes another."
    )


def target_row(target: Target) -> tuple[str, ...]:
    """One row of `nvlm-build targets`."""
    from nvlm_deploy.config.target import capability

    others = [name for name in target.backends if name != target.backend]
    return (
        target.name,
        "-" if target.sm is None else capability(target.sm),
        _figure(target.memory.total_gib),
        _figure(target.memory.usable_gib),
        _figure(target.bandwidth_gb_s),
        _figure(target.tflops.get("fp16")),
        ", ".join([target.backend, *others]),
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
