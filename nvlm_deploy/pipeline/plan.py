"""The plan of an engine build: everything that can be known before the first second of work.

`--dry-run` prints the very object that a build runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.backends.makers import EngineMaker, EngineSettings, engine_maker
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.manifest import MANIFEST_NAME, PartSize
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.suitability import (
    VERIFIABLE_BACKEND,
    check_cross_backend,
    check_cross_ranks,
    check_engine,
)
from nvlm_deploy.config.target import Target, load_target, split_target_overrides
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError
from nvlm_deploy.pipeline.atomic import check_output
from nvlm_deploy.pipeline.quantize_plan import (
    CALIBRATION_PREFIX,
    DEFAULT_CALIBRATION,
    QuantizePlan,
    QuantizeRequest,
    plan_quantize,
)
from nvlm_deploy.planner import DevicePlan, Parallel, Question, Workload, tokenizer_bytes, with_hints
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.preprocess.tokenizer import Tokenizer
from nvlm_deploy.quantization.checkpoint import QuantizedWeights, open_weights
from nvlm_deploy.quantization.plan import QuantizationPlan, resolve
from nvlm_deploy.quantization.record import QuantizationRecord

TOKENIZER_NAME = "tokenizer.json"
# Besides the tokenizer, which a checkpoint may hold in another form and a bundle has in this one.
COPIED_FILES = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json")

_ONE_RANK = Parallel()
# Graphs without weights, tables of rotary angles, tokenizer, and what the file system adds.
_OVERHEAD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What a user asks for.

    checkpoint: as released, or quantized. recipe: a quantized checkpoint has its own. overrides:
    `key.path=value`, for the target with `target.` before them (`backend=` is the target's, too), for the
    calibration set with `calibration.`. parallel: ranks of the language model.
    """

    checkpoint: Path
    recipe: str | None
    target: str
    output: Path
    overrides: tuple[str, ...] = ()
    calibration: str = DEFAULT_CALIBRATION
    device: str = "cpu"
    parallel: Parallel = _ONE_RANK


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """A build that can start. `context` in tokens, `disk_needed` and `disk_free` in bytes.

    quantize: what makes the quantized checkpoint that `weights` stands for; None if it is there.
    calibration: the set whose tiles a 16-bit tower is tried with.
    device: what the engine needs and reaches on its target; it may not fit.
    """

    output: Path
    weights: ModelWeights
    tokenizer: Tokenizer
    recipe: Recipe
    target: Target
    quantization: QuantizationPlan
    context: int
    copied_files: tuple[str, ...]
    disk_needed: int
    disk_free: int
    notes: tuple[str, ...]
    quantize: QuantizePlan | None
    calibration: str
    device: DevicePlan

    @property
    def checkpoint(self) -> Path:
        return self.weights.reader.directory

    @property
    def released(self) -> Path | None:
        """The checkpoint in full precision, if it is what the build starts from."""
        return None if isinstance(self.weights, QuantizedWeights) else self.checkpoint

    @property
    def config(self) -> NvlmConfig:
        return self.weights.reader.config

    @property
    def verifiable_here(self) -> bool:
        """Whether `nvlm-build verify` can look into the engine."""
        return self.target.backend == VERIFIABLE_BACKEND

    @property
    def maker(self) -> EngineMaker:
        """What writes the engine."""
        return engine_maker(self.target.backend)

    @property
    def sizes(self) -> tuple[PartSize, ...]:
        """Bytes of every part's weights before and after."""
        return self.quantization.sizes()

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the bundle's files."""
        return (MANIFEST_NAME, *self.copied_files, TOKENIZER_NAME, *self.maker.files(self.config))

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        return {
            **self.device.to_dict(),
            "checkpoint": str(self.checkpoint),
            "output": str(self.output),
            "sizes": [{"part": size.part, "before": size.before, "after": size.after} for size in self.sizes],
            "kept": [
                {"tensor": name, "format": tensor.storage.format, "reason": tensor.kept}
                for name, tensor in self.quantization.tensors.items()
                if tensor.kept
            ],
            "files": list(self.files),
            "disk_needed": self.disk_needed,
            "disk_free": self.disk_free,
            "notes": [*self.notes, *self.device.notes],
        }


def plan_engine(request: BuildRequest) -> EnginePlan:
    """Check a request against checkpoint, recipe, target and disk; writes nothing.

    Raises:
        UsageError: an unknown name, a refused override, an output that exists.
        UnsuitableError: the context cannot hold one image, the disk has too little room, the target cannot
            run the recipe.
        NvlmError: the checkpoint, its tokenizer or a file of the catalog is not in order.
    """
    check_output(request.output)
    of_target, others = split_target_overrides(request.overrides)
    target = load_target(request.target, of_target)
    weights = open_weights(request.checkpoint)
    check_cross_backend(weights.reader.config, target)
    check_cross_ranks(weights.reader.config, request.parallel.pp)
    of_recipe = [text for text in others if not text.startswith(CALIBRATION_PREFIX)]
    recipe = _read_recipe(request, weights, of_recipe)
    check_engine(recipe, target)
    quantize = _plan_quantize(request, recipe, weights)
    config = weights.reader.config
    tokenizer = Tokenizer.from_directory(request.checkpoint)
    context = min(target.max_context, config.language.max_position_embeddings)
    _check_context(context, config, tokenizer, target)
    resolved = resolve(recipe, {name: weights.shape(name) for name in weights.names()})
    if isinstance(weights, QuantizedWeights):
        _check_stored(resolved, weights)
    maker = engine_maker(target.backend)
    quantization = maker.adapt(resolved)
    maker.check(config, quantization, EngineSettings(context, target))
    weights.verify_dummy_heads()
    copied = tuple(name for name in COPIED_FILES if (request.checkpoint / name).is_file())
    needed = _OVERHEAD_BYTES + maker.disk_bytes(quantization)
    if quantize is not None:
        needed += sum(part.after for part in quantize.sizes)
    check_ranks(target, request.parallel)
    request.parallel.check(config.language)
    load = Workload(config.max_tiles, context, target.limits.max_batch)
    question = Question(config, target, request.parallel, load, tokenizer_bytes(request.checkpoint))
    return EnginePlan(
        output=request.output,
        weights=weights,
        tokenizer=tokenizer,
        recipe=recipe,
        target=target,
        quantization=quantization,
        context=context,
        copied_files=copied,
        disk_needed=needed,
        disk_free=_check_disk(request.output, needed),
        notes=target.notes(),
        quantize=quantize,
        calibration=request.calibration,
        device=with_hints(question, question.plan_resolved(recipe, resolved)),
    )


def check_ranks(target: Target, parallel: Parallel) -> None:
    """Raise UsageError if several ranks are asked of a backend that has one."""
    if parallel.ranks > 1 and target.backend != "tensorrt_llm":
        raise UsageError(
            f"{target.backend} engines run on one device, not on {parallel.ranks}",
            hint="--tp and --pp are for TensorRT-LLM",
        )


def _read_recipe(request: BuildRequest, weights: ModelWeights, overrides: Sequence[str]) -> Recipe:
    """Read the recipe that is asked for, or the one that a quantized checkpoint was made by."""
    if isinstance(weights, QuantizedWeights):
        recipe = QuantizationRecord.read(request.checkpoint).recipe(overrides)
        if request.recipe not in (None, recipe.name):
            raise UsageError(
                f"{request.checkpoint} is quantized by the recipe {recipe.name}, not {request.recipe}",
                hint="leave --recipe out, or give the released checkpoint",
            )
        return recipe
    if request.recipe is None:
        raise UsageError(
            f"{request.checkpoint} is not quantized, so it needs a recipe",
            hint="--recipe NAME; nvlm-build recipes shows them",
        )
    return load_yaml_model("recipe", request.recipe, Recipe, overrides)


def _plan_quantize(request: BuildRequest, recipe: Recipe, weights: ModelWeights) -> QuantizePlan | None:
    """Plan the quantized checkpoint that a calibrated recipe needs, beside the output."""
    if not recipe.makes_checkpoint or isinstance(weights, QuantizedWeights):
        return None
    assert request.recipe is not None, "a released checkpoint is built by a recipe of the request"
    output = request.output
    return plan_quantize(
        QuantizeRequest(
            request.checkpoint,
            request.recipe,
            output.with_name(f".{output.name}.quantized"),
            request.calibration,
            overrides=tuple(split_target_overrides(request.overrides)[1]),
            device=request.device,
            intermediate=True,
        )
    )


def _check_stored(plan: QuantizationPlan, weights: QuantizedWeights) -> None:
    """What a quantized checkpoint holds must be what its recipe says."""
    for name, tensor in plan.tensors.items():
        wanted, stored = tensor.storage, weights.storages.get(name)
        found = ("floats",) if stored is None else (stored.format, stored.group_size)
        expected = (wanted.format, wanted.group_size) if wanted.algorithm else ("floats",)
        if found != expected:
            raise NvlmError(
                f"{weights.reader.directory}: {name} is stored as {found}, and the recipe says {expected}",
                hint="values of quantized matrices cannot be changed: quantize the released checkpoint anew",
            )


def _check_context(context: int, config: NvlmConfig, tokenizer: Tokenizer, target: Target) -> None:
    """An engine must hold the largest image with an empty question and one token of an answer."""
    largest = config.max_tiles + 1
    needed = len(PromptBuilder(tokenizer, config).build("", [largest])) + 1
    if context < needed:
        raise UnsuitableError(
            f"a context of {context:,} tokens cannot hold an image of {largest} tiles ({needed:,} tokens)",
            hint=f"raise max_context of the target '{target.name}', for example "
            f"--set target.max_context={needed + 1024}",
        )


def _check_disk(output: Path, needed: int) -> int:
    place = next(path for path in output.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UnsuitableError(
            f"the disk that holds {place} has {free / 1e9:.2f} GB free, and the engine takes "
            f"{needed / 1e9:.2f} GB",
            hint="free some space, choose an output on another disk, or a recipe with fewer bits",
        )
    return free
