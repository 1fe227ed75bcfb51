"""The options that `sensitivity` and `auto` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--calibration",
        metavar="SET",
        default="documents",
        show_default=True,
        help="What scales are chosen by: nvlm-build calibration, or a .yaml file.",
    ),
    click.option(
        "--prompts",
        metavar="SET",
        help="What losses are measured on: a calibration set with answers. Generated documents by default.",
    ),
    click.option(
        "--count", type=click.IntRange(min=1), default=64, show_default=True, help="Prompts to measure on."
    ),
    click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Change a value of a format's recipe (int4-awq.weights.language.group_size=64) or of the "
        "calibration set (calibration.count=32).",
    ),
    click.option(
        "--by",
        type=click.Choice(["layer", "group"]),
        default="layer",
        show_default=True,
        help="What gets a format of its own: a layer, or linears with one input (q/k/v, o, gate/up, down).",
    ),
    click.option("--device", metavar="DEVICE", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
    click.option(
        "--local",
        is_flag=True,
        help="Measure the error of each layer's own output, with one layer in memory instead of the model.",
    ),
)


def measuring_options(command: Command) -> Command:
    """Add the options that say how losses are measured."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parse_formats(text: str) -> tuple[str, ...]:
    """Names of recipes, separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
