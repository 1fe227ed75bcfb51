"""From names and numbers that a user gives to plans: one recipe, or all of them ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.parameters import parameter_shapes
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.suitability import (
    check_backend,
    check_cross_backend,
    check_cross_ranks,
    check_target,
)
from nvlm_deploy.config.target import Target, load_target, split_target_overrides
from nvlm_deploy.errors import UnsuitableError, UsageError
from nvlm_deploy.planner.device_plan import DevicePlan, plan_on_device
from nvlm_deploy.planner.memory import rank_memory
from nvlm_deploy.planner.shards import Parallel
from nvlm_deploy.planner.sizes import sum_sizes
from nvlm_deploy.planner.workload import Workload, shortest_context
from nvlm_deploy.quantization.plan import QuantizationPlan, resolve


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a user asks for; None: as much as model and target allow."""

    source: Path
    recipe: str
    target: str
    parallel: Parallel = field(default_factory=Parallel)
    batch: int = 1
    tiles: int | None = None
    context: int | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A request with its files read: everything about it but the recipe.

    tokenizer: bytes of the checkpoint's tokenizer.json; None without one.
    """

    config: NvlmConfig
    target: Target
    parallel: Parallel
    load: Workload
    tokenizer: int | None = None

    def plan(self, recipe: Recipe) -> DevicePlan:
        """Plan one recipe; what refuses it becomes a reason of the plan.

        Raises:
            UnsuitableError: it does not even resolve for this model: groups do not divide.
        """
        quantization = resolve(recipe, parameter_shapes(self.config))
        return self.plan_resolved(recipe, quantization)

    def plan_resolved(self, recipe: Recipe, quantization: QuantizationPlan) -> DevicePlan:
        """Plan a recipe that is resolved already."""
        refusals = self.refusals(recipe)
        plan = plan_on_device(
            self.config,
            quantization,
            recipe,
            self.target,
            self.load,
            self.parallel,
            tuple(error.message for error in refusals),
            self.tokenizer,
        )
        return replace(plan, hints=tuple(error.hint for error in refusals if error.hint))

    def fits(self, recipe: Recipe, quantization: QuantizationPlan) -> bool:
        """Whether `plan_resolved` would fit, without the rest of it."""
        if self.refusals(recipe):
            return False
        sizes = sum_sizes(self.config, quantization, self.target, self.parallel)
        needed = rank_memory(self.config, sizes, self.target, self.parallel, self.load).total
        usable = self.target.usable_bytes
        enough = self.load.context >= shortest_context(self.config, self.load.encoded_tiles)
        return enough and (usable is None or needed <= usable)

    def refusals(self, recipe: Recipe) -> list[UnsuitableError]:
        """Everything but memory that speaks against it."""
        found = []
        # What no software can change comes first.
        for check in (check_target, check_backend, self._check_ranks, self._check_variant):
            try:
                check(recipe, self.target)
            except UnsuitableError as error:
                found.append(error)
        return found

    def _check_variant(self, recipe: Recipe, target: Target) -> None:
        check_cross_backend(self.config, target)
        check_cross_ranks(self.config, self.parallel.pp)

    def _check_ranks(self, recipe: Recipe, target: Target) -> None:
        if self.parallel.ranks > 1 and target.backend != "tensorrt_llm":
            raise UnsuitableError(
                f"{target.backend} engines of {recipe.name} run on one device, not on {self.parallel.ranks}",
                hint="--tp and --pp are for targets with the backend tensorrt_llm",
            )


def read_question(request: PlanRequest) -> tuple[Question, list[str]]:
    """Read config and target of a request; return what it asks, and the recipe's overrides.

    Raises:
        UsageError, NvlmError: a name, an override or a file is not in order.
        UnsuitableError: heads or layers cannot be split as asked.
    """
    of_target, of_recipe = split_target_overrides(request.overrides)
    target = load_target(request.target, of_target)
    config = _read_config(request.source)
    request.parallel.check(config.language)
    limit = config.language.max_position_embeddings
    tiles = _within("--max-tiles", request.tiles, config.max_tiles)
    context = _within("--context", request.context, limit, min(target.max_context, limit))
    load = Workload(tiles, context, request.batch)
    return Question(config, target, request.parallel, load, tokenizer_bytes(request.source)), of_recipe


def read_recipe(name: str, overrides: Sequence[str]) -> Recipe:
    """Read one recipe of the catalog, or a file."""
    return load_yaml_model("recipe", name, Recipe, overrides)


def tokenizer_bytes(checkpoint: Path) -> int | None:
    """Bytes of a checkpoint's tokenizer.json; None if it has none, or is a config alone."""
    path = checkpoint / "tokenizer.json"
    return path.stat().st_size if path.is_file() else None


def _read_config(source: Path) -> NvlmConfig:
    if not source.exists():
        raise UsageError(f"{source} does not exist", hint="give a checkpoint or a config.json")
    return NvlmConfig.from_directory(source) if source.is_dir() else NvlmConfig.from_file(source)


def _within(option: str, value: int | None, limit: int, default: int | None = None) -> int:
    if value is None:
        return limit if default is None else default
    if value > limit:
        raise UsageError(f"{option} {value:,} is more than the model's {limit:,}")
    return value
