"""What `recipes` and `targets` have in common: list a catalog, or show one of its files."""

from __future__ import annotations

from typing import TypeVar

import click
from pydantic import BaseModel

from nvlm_deploy.cli.output import print_json, print_table
from nvlm_deploy.config.catalog import Kind, find, list_names, load_yaml_model

Schema = TypeVar("Schema", bound=BaseModel)


def show_catalog(kind: Kind, schema: type[Schema], name: str | None, as_json: bool) -> None:
    """Print the names and descriptions of a catalog, or the file behind one name."""
    if name is not None:
        # Reading it through the schema first: what is shown is what a build would accept.
        model = load_yaml_model(kind, name, schema)
        if as_json:
            print_json(model.model_dump(mode="json"))
        else:
            click.echo(find(kind, name).path.read_text(encoding="utf-8"), nl=False)
        return
    models = [model.model_dump(mode="json") for model in load_catalog(kind, schema)]
    if as_json:
        print_json(models)
    else:
        print_table([(str(model["name"]), str(model["description"])) for model in models])


def load_catalog(kind: Kind, schema: type[Schema]) -> list[Schema]:
    """Read all shipped files of a catalog, sorted by name."""
    return [load_yaml_model(kind, name, schema) for name in list_names(kind)]
