"""`nvlm-build plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.planner import DevicePlan, Question, Ranking

_AUTO = "auto"


@click.command()
@click.argument("source", metavar="CHECKPOINT|CONFIG", type=click.Path(path_type=Path))
@click.option("--recipe", metavar="NAME", required=True, help="A recipe, or auto: all of them, ranked.")
@click.option("--target", metavar="NAME", required=True, help="The device: nvlm-build targets.")
@click.option(
    "--tp", metavar="N", type=click.IntRange(1), default=1, show_default=True, help="Devices per stage."
)
@click.option(
    "--pp", metavar="N", type=click.IntRange(1), default=1, show_default=True, help="Pipeline stages."
)
@click.option(
    "--max-batch",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Requests at a time.",
)
@click.option(
    "--max-tiles", metavar="N", type=click.IntRange(1), help="Tiles of an image.  [default: the model's]"
)
@click.option("--context", metavar="N", type=click.IntRange(1), help="Tokens of prompt and answer.")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a value of the recipe (weights.language.group_size=64) or the target "
    "(target.bandwidth_gb_s=50, backend=tensorrt_rtx).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    source: Path,
    recipe: str,
    target: str,
    tp: int,
    pp: int,
    max_batch: int,
    max_tiles: int | None,
    context: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Predict size, memory and speed of an engine, and whether it fits.

    Nothing is read but the model's config.json. The exit code is 3 if the engine does not fit or cannot
    run on the device; the plan is printed all the same.
    """
    from nvlm_deploy.errors import UsageError
    from nvlm_deploy.planner import Parallel, PlanRequest, read_question

    request = PlanRequest(
        source, recipe, target, Parallel(tp, pp), max_batch, max_tiles, context, tuple(overrides)
    )
    question, of_recipe = read_question(request)
    if recipe != _AUTO:
        _one(question, recipe, of_recipe, as_json)
        return
    if of_recipe:
        raise UsageError(f"--set {of_recipe[0]} is for one recipe, and auto takes all of them")
    _all(question, as_json)


def _one(question: Question, recipe: str, overrides: list[str], as_json: bool) -> None:
    from nvlm_deploy.cli.output import note, print_json
    from nvlm_deploy.planner import read_recipe, with_hints

    plan = with_hints(question, question.plan(read_recipe(recipe, overrides)))
    if as_json:
        print_json(plan.to_dict())
    else:
        print_plan(plan)
        for text in plan.notes:
            note(text)
    plan.require_fit()


def _all(question: Question, as_json: bool) -> None:
    from nvlm_deploy.cli.output import note, print_json
    from nvlm_deploy.errors import UnsuitableError
    from nvlm_deploy.planner import rank_recipes, with_hints

    ranking = rank_recipes(question)
    first = with_hints(question, ranking.plans[0], ranking) if ranking.plans else None
    if as_json:
        print_json({**(first.to_dict() if first else {"fits": False}), "ranking": ranking.to_dict()})
    else:
        _print_ranking(ranking)
        for text in first.notes if first else ():
            note(text)
    if ranking.best is None:
        raise UnsuitableError(
            f"no recipe fits {question.target.name}",
            hint=first.hints[-1] if first and first.hints else None,
        )


def print_plan(plan: DevicePlan) -> None:
    """Print the tables of one plan on stdout."""
    from nvlm_deploy.cli.output import human_bytes, print_table

    load, ranks = plan.load, plan.parallel
    print_table(
        [
            ("recipe", f"{plan.recipe.name}: {plan.recipe.description}"),
            ("target", f"{plan.target.name} through {plan.target.backend}, TP {ranks.tp} x PP {ranks.pp}"),
            ("for", f"{load.tiles} tiles, {load.context:,} tokens of context, batch {load.batch}"),
            ("fits", "yes" if plan.fits else "no: " + "; ".join(plan.reasons)),
        ]
    )
    click.echo()
    rows = [("bytes", "recipe", "engine")]
    recipe, engine = plan.weights.to_dict(), plan.engine.to_dict()
    rows += [(part, human_bytes(recipe[part]), human_bytes(engine[part])) for part in recipe]
    print_table(rows, right=(1, 2))
    click.echo()
    print_table(_memory_rows(plan), right=(1,))
    click.echo()
    print_table(_speed_rows(plan))
    for hint in plan.hints:
        click.echo(f"\nfits: {hint}" if hint == plan.hints[0] else f"fits: {hint}")


def _memory_rows(plan: DevicePlan) -> list[tuple[str, str]]:
    from nvlm_deploy.cli.output import human_bytes

    usable = plan.target.usable_bytes
    rows = [("memory of the fullest device", "")]
    rows += [(name.replace("_", " "), human_bytes(size)) for name, size in plan.memory.to_dict().items()]
    rows += [
        ("total", human_bytes(plan.memory.total)),
        ("usable", "not known" if usable is None else human_bytes(usable)),
        (f"keys and values of a token ({plan.kv_format})", human_bytes(plan.kv_bytes_per_token)),
        ("build: host", human_bytes(plan.build.host_bytes)),
        ("build: device", human_bytes(plan.build.device_bytes)),
        ("opening: host, file read whole", human_bytes(plan.opening.host_bytes)),
        ("disk", human_bytes(plan.files.total)),
    ]
    return rows


def _speed_rows(plan: DevicePlan) -> list[tuple[str, str]]:
    prediction, efficiency = plan.prediction, plan.target.efficiency
    ttft = ", ".join(f"{tiles}: {ms:,.0f} ms" for tiles, ms in prediction.ttft_ms.items())
    decode = prediction.decode_tokens_per_s
    rows = [
        ("time to first token by tiles", ttft or "not predicted"),
        ("decode", "not predicted" if decode is None else f"{decode:.2f} tokens/s"),
        (
            "assumed shares of the roofline",
            f"decode {efficiency.decode:.0%}, prefill {efficiency.prefill:.0%}, "
            f"tower {efficiency.vision:.0%}",
        ),
    ]
    if plan.largest is not None:
        most = plan.largest
        frontier = ", ".join(f"batch {batch}: {context:,}" for batch, context in most.frontier)
        rows.append(("longest context by batch", frontier or "none fits"))
    return rows


def _print_ranking(ranking: Ranking) -> None:
    from nvlm_deploy.cli.output import human_bytes, print_table
    from nvlm_deploy.planner.ranking import ANSWER_TOKENS, accuracy_class, answer_seconds

    rows = [("recipe", "fits", "weights", "memory", "TTFT", "decode", "answer", "accuracy", "")]
    for plan in ranking.plans:
        prediction, seconds = plan.prediction, answer_seconds(plan)
        ttft = max(prediction.ttft_ms.values(), default=None)
        decode = prediction.decode_tokens_per_s
        rows.append(
            (
                plan.recipe.name,
                "yes" if plan.fits else "no",
                human_bytes(plan.weights.total),
                human_bytes(plan.memory.total),
                "-" if ttft is None else f"{ttft:,.0f} ms",
                "-" if decode is None else f"{decode:.2f}",
                "-" if seconds is None else f"{seconds:.1f} s",
                accuracy_class(plan.recipe),
                plan.reasons[0] if plan.reasons else "",
            )
        )
    rows += [(name, "no", "-", "-", "-", "-", "-", "-", reason) for name, reason in ranking.refused]
    print_table(rows, right=(2, 3, 4, 5, 6))
    click.echo(
        f"\nTTFT: of the largest image. decode: tokens/s. answer: {ANSWER_TOKENS} tokens about that image."
    )
