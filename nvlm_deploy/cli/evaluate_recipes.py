"""`nvlm-eval recipes`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from nvlm_deploy.eval.recipes import Trial

_POSITIVE = click.IntRange(min=1)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    "names",
    metavar="NAME",
    multiple=True,
    required=True,
    help="May be given again, as may seeds.",
)
@click.option("--calibration", "sets", metavar="SET", multiple=True, help="Default: documents.")
@click.option(
    "--seed", "seeds", type=click.IntRange(min=0), multiple=True, help="Of calibration. Default: 0."
)
@click.option("--target", metavar="NAME", default="cpu-x86", show_default=True)
@click.option("--count", type=_POSITIVE, default=500, show_default=True, help="Questions to ask.")
@click.option(
    "--prompts", type=_POSITIVE, default=100, show_default=True, help="Prompts to compare logits on."
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON, written after every engine; engines that are in it already are not measured again.",
)
def recipes(
    checkpoint: Path,
    names: tuple[str, ...],
    sets: tuple[str, ...],
    seeds: tuple[int, ...],
    target: str,
    count: int,
    prompts: int,
    output: Path,
) -> None:
    """Compare recipes on held-out generated documents.

    Every recipe becomes an engine of CHECKPOINT, once for every seed if it is calibrated. Divergences are
    from the checkpoint in FP32, on the tokens of right answers.
    """
    from nvlm_deploy.cli.output import note
    from nvlm_deploy.eval.recipes import RecipeComparison

    trials = [trial for name in names for trial in _trials(name, sets or ("documents",), seeds or (0,))]
    done = _read(output, {"count": count, "prompts": prompts, "target": target})
    known = {(t["recipe"], t["calibration"], t["seed"]) for t in done["trials"]}
    comparison = RecipeComparison(checkpoint, target, count, prompts)
    with tempfile.TemporaryDirectory(prefix="nvlm-eval-") as directory:
        if not done["trials"]:
            done["trials"].append(comparison.reference().to_dict())
        for trial in trials:
            if (trial.recipe, trial.calibration, trial.seed) in known:
                continue
            note(f"{trial.recipe}, {trial.calibration or 'not calibrated'}, seed {trial.seed}")
            done["trials"].append(comparison.measure(trial, Path(directory, "bundle")).to_dict())
            output.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    _print(done["trials"])


def _trials(name: str, sets: tuple[str, ...], seeds: tuple[int, ...]) -> list[Trial]:
    from nvlm_deploy.config.catalog import load_yaml_model
    from nvlm_deploy.config.recipe import Recipe
    from nvlm_deploy.eval.recipes import Trial

    recipe = load_yaml_model("recipe", name, Recipe)
    if not (recipe.makes_checkpoint and recipe.needs_calibration):
        return [Trial(name)]
    return [Trial(name, each, seed) for each in sets for seed in seeds]


def _read(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read what an earlier run measured, if it asked the same."""
    if output.exists():
        found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in settings} == settings:
            return found
        raise click.UsageError(f"{output} holds results of other settings: choose another file")
    return {**settings, "trials": []}


def _print(trials: list[dict[str, Any]]) -> None:
    from nvlm_deploy.cli.output import print_table
    from nvlm_deploy.eval.recipes import pareto, summarize

    rows = summarize(trials)
    best = pareto(rows)
    table = [
        ("recipe", "calibration", "exact match", "worst", "KL image", "KL text", "top-1", "MB", "ms", "")
    ]
    for row in rows:
        table.append(
            (
                row.recipe,
                f"{row.calibration} x {row.trials}" if row.calibration else "-",
                f"{100 * row.exact_match:.1f} %",
                f"{100 * row.worst:.1f} %",
                f"{row.image_kl:.5f}",
                f"{row.text_kl:.5f}",
                f"{100 * row.top1:.1f} %",
                f"{row.nbytes / 1e6:.2f}",
                f"{row.ms:.0f}",
                "*" if row in best else "",
            )
        )
    print_table(table, right=(2, 3, 4, 5, 6, 7, 8))
    click.echo("\n* no other recipe has both fewer bytes and less divergence on images")
