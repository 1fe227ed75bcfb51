"""`nvlm-train run`, `show`, `merge` and `configs`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from nvlm_deploy.train.data.sample import TrainSample
    from nvlm_deploy.train.plan import TrainingPlan
    from nvlm_deploy.train.show import Span

Command = TypeVar("Command", bound=Callable[..., Any])

# The shell's way to say "ended by SIGTERM": the checkpoint is written, and the same command goes on.
EXIT_STOPPED = 143


def overriding(command: Command) -> Command:
    """The option that changes values of a config."""
    return click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Change a value of the config (max_steps=100, data.packing=true, lora.r=32).",
    )(command)


@click.command()
@click.argument("config", metavar="CONFIG")
@overriding
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def run(config: str, overrides: tuple[str, ...], dry_run: bool, as_json: bool) -> int | None:
    """Train a checkpoint, or go on with a run.

    CONFIG is a name (nvlm-train configs) or a .yaml file. The same command goes on with a run that was
    stopped. SIGTERM saves and exits with 143. Several GPUs: torchrun --nproc-per-node N -m nvlm_deploy.train
    CONFIG.
    """
    import logging

    from nvlm_deploy.cli.output import note, print_json, progress_bars
    from nvlm_deploy.config.training import read_training_config
    from nvlm_deploy.train.run import run_training

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    settings, folder = read_training_config(config, overrides)
    if dry_run:
        _print_plan(plan_of(config, overrides), as_json)
        return None
    with progress_bars() as progress:
        result = run_training(settings, folder, progress)
    if result.output is None:
        note(f"stopped and saved at step {result.step:,}; the same command goes on")
        return EXIT_STOPPED
    if as_json:
        print_json({"step": result.step, "output": str(result.output)})
    else:
        click.echo(str(result.output))
    return None


@click.command()
@click.argument("config", metavar="CONFIG")
@overriding
@click.option("--sample", "number", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "-o", "--output", metavar="FILE.png", type=click.Path(path_type=Path), help="Write the tiles here."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(config: str, overrides: tuple[str, ...], number: int, output: Path | None, as_json: bool) -> None:
    """Show one sample as it is trained on.

    Token ids, which of them the loss counts on, and tiles.
    """
    from nvlm_deploy.cli.output import print_json
    from nvlm_deploy.train.show import show_sample, spans, tile_picture

    plan = plan_of(config, overrides)
    sample = show_sample(plan, number)
    found = spans(plan.dataset().builder.tokenizer, sample)
    if output is not None:
        tile_picture(sample).save(output)
    if as_json:
        answered = sample.answered
        print_json(
            {
                "label": sample.label,
                "source": plan.names[sample.source],
                "input_ids": answered.input_ids.tolist(),
                "labels": answered.labels.tolist(),
                "tiles_per_image": list(sample.tiles_per_image),
                "max_tiles": sample.max_tiles,
                "loss_tokens": sample.loss_tokens,
            }
        )
        return
    _print_sample(plan, sample, found)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("adapters", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--output", metavar="DIRECTORY", required=True, type=click.Path(path_type=Path))
def merge(checkpoint: Path, adapters: Path, output: Path) -> None:
    """Add adapters to their checkpoint.

    ADAPTERS is a folder in peft's format, CHECKPOINT what they were trained on.
    """
    from nvlm_deploy.train.export import merge_adapters

    merge_adapters(checkpoint, adapters, output)
    click.echo(str(output))


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def configs(name: str | None, as_json: bool) -> None:
    """List the training configs, or show one."""
    import yaml

    from nvlm_deploy.cli.output import print_json, print_table
    from nvlm_deploy.config.catalog import list_names
    from nvlm_deploy.config.training import read_training_config

    if name is not None:
        values = read_training_config(name)[0].to_dict()
        print_json(values) if as_json else click.echo(yaml.safe_dump(values, sort_keys=False).rstrip())
        return
    found = [read_training_config(each)[0] for each in list_names("training config")]
    if as_json:
        print_json([{"name": each.name, "description": each.description} for each in found])
        return
    print_table([(each.name, each.description) for each in found])


def plan_of(config: str, overrides: tuple[str, ...]) -> TrainingPlan:
    """A config as the command line gives it, held against its model and data."""
    import os

    from nvlm_deploy.config.training import read_training_config
    from nvlm_deploy.train.plan import plan_training

    settings, folder = read_training_config(config, overrides)
    world = int(os.environ.get("WORLD_SIZE", settings.tensor_parallel_size))
    return plan_training(settings, folder, world)


def _print_plan(plan: TrainingPlan, as_json: bool) -> None:
    from nvlm_deploy.cli.output import human_bytes, print_json, print_table

    facts = plan.to_dict()
    if as_json:
        print_json(facts)
        return
    print_table(
        [
            ("config", f"{facts['name']}: {plan.config.description}"),
            ("model", f"{facts['model']} (NVLM-{facts['variant']})"),
            ("processes", f"{plan.world:,}"),
            ("steps", f"{plan.total_steps:,} of {facts['sequences_per_step']:,} sequences"),
            ("tokens", f"at most {facts['max_tokens_per_step'] * plan.total_steps:,}"),
            *(("trained", f"{part}: {count:,}") for part, count in plan.trained.items()),
            *(("frozen", f"{part}: {count:,}") for part, count in plan.frozen.items()),
            *(
                ("source", f"{s['name']}: {s['samples']:,} samples ({s['kind']}), weight {s['weight']:g}")
                for s in facts["sources"]
            ),
            *(("memory", f"{kind}: {human_bytes(size)}") for kind, size in plan.memory.items()),
        ]
    )


def _print_sample(plan: TrainingPlan, sample: TrainSample, found: list[Span]) -> None:
    from nvlm_deploy.cli.output import print_table

    tiles = " + ".join(str(count) for count in sample.tiles_per_image) or "none"
    print_table(
        [
            ("sample", sample.label),
            ("source", plan.names[sample.source]),
            ("tokens", f"{len(sample):,}, of which {sample.loss_tokens:,} count"),
            ("tiles", f"{tiles}, at most {sample.max_tiles} per image and a thumbnail"),
        ]
    )
    click.echo("\nGreen and marked with > is what the loss counts on.\n")
    for span in found:
        ids = " ".join(str(token) for token in span.ids)
        text = f"{len(span.ids)} visual tokens" if span.visual else repr(span.text)
        line = f"{'>' if span.counts else ' '} {span.start:>6}  {text}"
        click.echo(click.style(line, fg="green" if span.counts else None, dim=span.visual))
        if not span.visual:
            click.echo(click.style(f"          {ids}", dim=True))
