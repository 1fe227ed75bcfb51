"""What to change when an engine does not fit; every suggestion is a plan that does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from nvlm_deploy.config.catalog import list_names
from nvlm_deploy.config.parameters import parameter_shapes
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.target import load_target
from nvlm_deploy.planner.device_plan import DevicePlan
from nvlm_deploy.planner.ranking import Ranking, rank_recipes
from nvlm_deploy.planner.request import Question
from nvlm_deploy.planner.shards import Parallel
from nvlm_deploy.quantization.plan import QuantizationPlan, resolve

_RANKS = (2, 4, 8)
_NAMED = 3


def with_hints(question: Question, plan: DevicePlan, ranking: Ranking | None = None) -> DevicePlan:
    """Add what would fit to a plan that does not. `ranking`: that of the question, if it is made already."""
    if plan.fits:
        return plan
    ranking = ranking or rank_recipes(question, runnable=True)
    found = [*plan.hints, *_suggestions(question, plan, ranking)]
    return replace(plan, hints=tuple(dict.fromkeys(found)))


def _suggestions(question: Question, plan: DevicePlan, ranking: Ranking) -> Iterator[str]:
    yield from _smaller_workload(plan)
    quantization = resolve(plan.recipe, parameter_shapes(question.config))
    ranks = _more_ranks(question, plan.recipe, quantization)
    if ranks is not None:
        yield f"--tp {ranks}: {ranks} devices hold it"
    others = [each.recipe.name for each in ranking.plans if each.fits]
    if others:
        yield f"--recipe {' or '.join(others[:_NAMED])}: fits {question.target.name}"
    elsewhere = list(islice(_other_targets(question, plan.recipe, quantization), _NAMED))
    if elsewhere:
        yield f"--target {' or '.join(elsewhere)}: holds {plan.recipe.name}"


def _smaller_workload(plan: DevicePlan) -> Iterator[str]:
    largest, load = plan.largest, plan.load
    if largest is None:
        return
    if largest.context is not None and largest.context < load.context:
        yield f"--context {largest.context}: fits with {load.tiles} tiles and a batch of {load.batch}"
    if largest.batch is not None and largest.batch < load.batch:
        yield f"--max-batch {largest.batch}: fits with a context of {load.context:,}"
    if largest.tiles is not None and largest.tiles < load.tiles:
        yield f"--max-tiles {largest.tiles}: fits with a context of {load.context:,}, batch {load.batch}"


def _more_ranks(question: Question, recipe: Recipe, quantization: QuantizationPlan) -> int | None:
    """The fewest devices that hold it, if there can be several."""
    if question.target.backend != "tensorrt_llm" or question.target.memory.unified:
        return None
    for ranks in _RANKS:
        parallel = Parallel(ranks, question.parallel.pp)
        if ranks <= question.parallel.tp or question.config.language.num_heads % ranks:
            continue
        if replace(question, parallel=parallel).fits(recipe, quantization):
            return ranks
    return None


def _other_targets(question: Question, recipe: Recipe, quantization: QuantizationPlan) -> Iterator[str]:
    """Targets whose memory is known and that hold the same, the smallest first."""
    targets = [load_target(name) for name in list_names("target")]
    known = [target for target in targets if target.usable_bytes is not None]
    for target in sorted(known, key=lambda each: each.usable_bytes or 0):
        for backend in target.backends:
            chosen = target.model_copy(update={"backend": backend})
            context = min(question.load.context, target.max_context)
            moved = replace(question, target=chosen, load=replace(question.load, context=context))
            if target.name != question.target.name and moved.fits(recipe, quantization):
                yield target.name if backend == target.backend else f"{target.name} --set backend={backend}"
                break
