"""`nvlm-build doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.doctor import Report, Wanted


@click.command()
@click.option("--target", metavar="NAME", help="Can its engines be made here: nvlm-build targets.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a value of the target.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(target: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Look at this machine: drivers, engine makers, versions, memory, disk.

    Nothing is changed, and nothing needs root. The exit code is 3 if something cannot work.
    """
    from nvlm_deploy.cli.output import print_json
    from nvlm_deploy.doctor import ThisMachine, examine
    from nvlm_deploy.errors import UnsuitableError, UsageError

    if overrides and target is None:
        raise UsageError("--set changes a target", hint="name one with --target")
    report = examine(ThisMachine(), _wanted(target, overrides) if target else None)
    print_json(report.to_dict()) if as_json else _print(report)
    errors = report.count("error")
    if errors:
        raise UnsuitableError(
            f"{errors} of {len(report.lines)} things are not in order",
            hint="every line above that says error has its remedy below it",
        )


def _wanted(name: str, overrides: tuple[str, ...]) -> Wanted:
    from nvlm_deploy.config.catalog import load_yaml_model
    from nvlm_deploy.config.target import Target
    from nvlm_deploy.doctor import Wanted

    keys = [text.removeprefix("target.") for text in overrides]
    target = load_yaml_model("target", name, Target, keys)
    versions = target.model_dump().get("versions", {})
    return Wanted(target.name, target.backend.replace("-", "_"), target.architecture, target.sm, versions)


def _print(report: Report) -> None:
    topics = max(len(line.topic) for line in report.lines)
    for line in report.lines:
        click.echo(f"{line.status:<7}  {line.topic:<{topics}}  {line.found}")
        if line.advice:
            click.echo(f"{'':<{9 + topics}}  -> {line.advice}")
    click.echo()
    counts = f"{report.count('error')} errors, {report.count('warning')} warnings"
    click.echo(f"{len(report.lines)} lines: {counts}")
