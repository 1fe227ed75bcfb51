"""`nvlm-build recipes`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.quantization.comparison import RecipeFigures


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes, or show one.

    A recipe says how an engine's numbers are stored. NAME is a shipped recipe or a .yaml file. Sizes are
    those of NVLM-D-72B.
    """
    from nvlm_deploy.cli.catalogs import load_catalog, show_catalog
    from nvlm_deploy.cli.output import print_json, print_table
    from nvlm_deploy.config.recipe import Recipe

    if name is not None:
        show_catalog("recipe", Recipe, name, as_json)
        return
    from nvlm_deploy.quantization.comparison import compare

    models = load_catalog("recipe", Recipe)
    figures = compare(models)
    if as_json:
        pairs = zip(models, figures, strict=True)
        print_json([{**recipe.model_dump(mode="json"), **each.to_dict()} for recipe, each in pairs])
        return
    print_table(recipe_rows(figures), right=(1, 2, 3, 4))
    click.echo(
        "\nB/weight: bytes of a weight of NVLM-D-72B's matrices, scales included; decoder: of its layers "
        "alone.\nGB: all weights. SM: the oldest compute capability of a GPU."
    )


def recipe_rows(figures: list[RecipeFigures]) -> list[tuple[str, ...]]:
    """The table of `nvlm-build recipes`, headings first."""
    rows: list[tuple[str, ...]] = [("recipe", "B/weight", "decoder", "GB", "SM", "calibration", "engines")]
    for each in figures:
        rows.append(
            (
                each.name,
                f"{each.bytes_per_weight:.3f}",
                f"{each.decoder_bytes_per_weight:.3f}",
                f"{each.weight_bytes / 1e9:.1f}",
                each.capability,
                "needed" if each.needs_calibration else "-",
                ", ".join(each.engines),
            )
        )
    return rows
