"""`nvlm-train bench`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click


@click.command()
@click.argument("config", metavar="CONFIG")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a value of the config.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Of one turn.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(config: str, overrides: tuple[str, ...], rounds: int, steps: int, as_json: bool) -> None:
    """Measure training beside transformers' Trainer, and packed beside unpacked.

    They take turns. All have the model, data, batch size and optimizer of CONFIG.
    """
    from nvlm_deploy.cli.output import print_json, print_table, progress_bars
    from nvlm_deploy.config.training import read_training_config
    from nvlm_deploy.train.bench import bench_training

    settings, folder = read_training_config(config, overrides)
    with tempfile.TemporaryDirectory(prefix="nvlm-train-") as work, progress_bars() as progress:
        rows = bench_training(settings, folder, Path(work), rounds, steps, progress)
    if as_json:
        print_json(rows)
        return
    base = rows[0]
    table = [("", "samples/s", "tokens/s", "MFU", "beside the first", "tokens per CPU s", "beside the first")]
    for row in rows:
        wall, cpu = (row[key] / base[key] for key in ("tokens_per_second", "tokens_per_cpu_second"))
        table.append(
            (
                row["subject"],
                f"{row['samples_per_second']:.2f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{100 * row['mfu']:.1f} %",
                f"{wall:.2f}",
                f"{row['tokens_per_cpu_second']:,.0f}",
                f"{cpu:.2f}",
            )
        )
    print_table(table, right=range(1, 7))
