"""Stage: checkpoint and candidate recipes -> what every layer loses in every format."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nvlm_deploy.calibration import CalibrationSamples, load_samples
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.config.calibration import CalibrationSet, read_calibration_set
from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.sensitivity import Granularity, SensitivityReport, UsedCalibration
from nvlm_deploy.errors import UnsuitableError, UsageError, did_you_mean
from nvlm_deploy.eval.agreement import Agreement
from nvlm_deploy.models.device import open_device
from nvlm_deploy.pipeline.quantize_plan import DEFAULT_CALIBRATION, check_storages
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.quantization.plan import resolve
from nvlm_deploy.quantization.stream import CalibrationStream, StreamSettings
from nvlm_deploy.quantization.streamed_model import StreamedModel
from nvlm_deploy.sensitivity.measure import KlMeasure, LocalMeasure
from nvlm_deploy.sensitivity.options import Candidate, Unit, model_units
from nvlm_deploy.sensitivity.prompts import Prompts, document_prompts
from nvlm_deploy.sensitivity.sweep import measure_recipe, measure_units

_CALIBRATION_PREFIX = "calibration."
_FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class SensitivityRequest:
    """What a user asks for.

    formats: recipes, each of which gives one format for every part. prompts: a calibration set to measure on;
    None for generated documents. overrides: `key.path=value`, with `calibration.` or `RECIPE.` before them.
    local: measure layer by layer, with one layer in memory. by: what gets a format of its own.
    """

    checkpoint: Path
    formats: tuple[str, ...]
    calibration: str = DEFAULT_CALIBRATION
    prompts: str | None = None
    count: int = 64
    overrides: tuple[str, ...] = ()
    device: str = "cpu"
    local: bool = False
    by: Granularity = "layer"


@dataclass(frozen=True, slots=True)
class SensitivityPlan:
    """A measurement that can start. `memory` is what it holds at least, in bytes."""

    request: SensitivityRequest
    weights: ModelWeights
    tokenizer: Tokenizer
    candidates: tuple[Candidate, ...]
    units: tuple[Unit, ...]
    calibration: CalibrationSet | None
    calibration_directory: Path
    memory: int

    @property
    def device(self) -> torch.device:
        return torch.device(self.request.device)


def plan_sensitivity(request: SensitivityRequest) -> SensitivityPlan:
    """Check a request against checkpoint, recipes and memory; writes nothing.

    Raises:
        UsageError: an unknown name, a refused override, recipes that are made in different ways.
        UnsuitableError: a recipe does not fit the model, or the model does not fit into memory.
        NvlmError: a file is not in order.
    """
    return plan_with_recipes(request, _load_recipes(request))


def plan_with_recipes(request: SensitivityRequest, recipes: Sequence[Recipe]) -> SensitivityPlan:
    """As `plan_sensitivity`, for recipes that are read already, whatever `formats` the request names."""
    open_device(request.device)
    weights = ModelWeights(CheckpointReader(request.checkpoint))
    candidates = _candidates(recipes, weights)
    calibration, directory = None, Path()
    if any(recipe.needs_calibration for recipe in recipes):
        calibration, directory = read_calibration_set(
            request.calibration, _below(request, _CALIBRATION_PREFIX)
        )
    memory = _memory(weights, request.local)
    if memory > _physical_memory(request.device):
        raise UnsuitableError(
            f"the exact measure holds the whole model in FP32, {memory / 1e9:.1f} GB, and {request.device} "
            f"has {_physical_memory(request.device) / 1e9:.1f} GB",
            hint="--local holds one layer, and measures the error of each layer's own output",
        )
    weights.verify_dummy_heads()
    return SensitivityPlan(
        request=request,
        weights=weights,
        tokenizer=Tokenizer.from_directory(request.checkpoint),
        candidates=candidates,
        units=model_units(weights.reader.config, candidates, request.by),
        calibration=calibration,
        calibration_directory=directory,
        memory=memory,
    )


def run_sensitivity(
    plan: SensitivityPlan, progress: ProgressCallback = no_progress, prompts: Prompts | None = None
) -> SensitivityReport:
    """Measure every option of every unit.

    Args:
        prompts: those of `load_prompts`, if they are loaded already.
    """
    began = time.perf_counter()
    samples = _load_calibration(plan, progress)
    shown = prompts or load_prompts(plan)
    with tempfile.TemporaryDirectory(prefix="nvlm-sensitivity-") as name:
        folder = Path(name)
        stream = _stream(plan, samples, folder / "calibration", progress)
        if plan.request.local:
            local = LocalMeasure(plan.weights, shown, plan.device, folder / "prompts")
            units = measure_units(stream, plan.units, local, progress)
        else:
            units = measure_units(stream, plan.units, KlMeasure(plan.weights, shown, plan.device), progress)
    return SensitivityReport(
        checkpoint_fingerprint=plan.weights.reader.fingerprint(),
        by=plan.request.by,
        measure="relative-error" if plan.request.local else "kl",
        recipes=[candidate.recipe for candidate in plan.candidates],
        calibration=_used_calibration(plan, samples),
        prompts=shown.describe(),
        units=units,
        seconds=time.perf_counter() - began,
    )


def recipe_agreement(
    plan: SensitivityPlan,
    recipe: Recipe,
    progress: ProgressCallback = no_progress,
    prompts: Prompts | None = None,
) -> Agreement:
    """Compare the model under a whole recipe with FP32, on the prompts of `plan`: what the sum predicts."""
    (candidate,) = _candidates([recipe], plan.weights)
    samples = _load_calibration(plan, progress) if recipe.needs_calibration else None
    shown = prompts or load_prompts(plan)
    with tempfile.TemporaryDirectory(prefix="nvlm-sensitivity-") as name:
        stream = _stream(plan, samples, Path(name), progress)
        return measure_recipe(stream, candidate, KlMeasure(plan.weights, shown, plan.device), progress)


def load_prompts(plan: SensitivityPlan) -> Prompts:
    """Read what losses are measured on.

    Raises:
        NvlmError: the set is not in order.
    """
    config, request = plan.weights.reader.config, plan.request
    if request.prompts is None:
        return document_prompts(PromptBuilder(plan.tokenizer, config), request.count)
    spec, directory = read_calibration_set(request.prompts, [f"count={request.count}"])
    return Prompts(request.prompts, list(load_samples(spec, config, plan.tokenizer, directory)))


def _used_calibration(plan: SensitivityPlan, samples: CalibrationSamples | None) -> UsedCalibration | None:
    if samples is None:
        return None
    overrides = _below(plan.request, _CALIBRATION_PREFIX)
    return UsedCalibration(name=plan.request.calibration, overrides=overrides, digest=samples.summary.digest)


def _stream(
    plan: SensitivityPlan, samples: CalibrationSamples | None, folder: Path, progress: ProgressCallback
) -> CalibrationStream:
    settings = StreamSettings(plan.calibration.class_weights) if plan.calibration else StreamSettings()
    model = StreamedModel(plan.weights, plan.device)
    return CalibrationStream(model, samples, folder, settings, progress)


def _load_calibration(plan: SensitivityPlan, progress: ProgressCallback) -> CalibrationSamples | None:
    if plan.calibration is None:
        return None
    config = plan.weights.reader.config
    return load_samples(plan.calibration, config, plan.tokenizer, plan.calibration_directory, progress)


def _load_recipes(request: SensitivityRequest) -> list[Recipe]:
    stems = [Path(name).stem for name in request.formats]
    for text in request.overrides:
        owner = text.split(".", 1)[0]
        if owner not in (*stems, "calibration"):
            raise UsageError(
                f"--set {text}: '{owner}' is none of the formats",
                hint=did_you_mean(owner, [*stems, "calibration"]),
            )
    recipes = [
        load_yaml_model("recipe", name, Recipe, _below(request, f"{stem}."))
        for name, stem in zip(request.formats, stems, strict=True)
    ]
    names = [recipe.name for recipe in recipes]
    for number, recipe in enumerate(recipes):
        if recipe.name in names[:number]:
            raise UsageError(f"two of the formats have the name {recipe.name}", hint="give each its own")
        if recipe.algorithm == "none":
            raise UsageError(f"recipe {recipe.name} quantizes nothing; 16 bits are always an option")
        if recipe.makes_checkpoint != recipes[0].makes_checkpoint:
            raise UsageError(
                f"recipes {recipes[0].name} and {recipe.name} cannot be mixed: one rounds while an engine is "
                "written, the other makes a quantized checkpoint first",
                hint="choose among the round-to-nearest recipes, or among the others",
            )
    return recipes


def _below(request: SensitivityRequest, prefix: str) -> list[str]:
    return [text.removeprefix(prefix) for text in request.overrides if text.startswith(prefix)]


def _candidates(recipes: Sequence[Recipe], weights: ModelWeights) -> tuple[Candidate, ...]:
    shapes = {name: weights.shape(name) for name in weights.names()}
    candidates = tuple(Candidate(recipe, resolve(recipe, shapes)) for recipe in recipes)
    for candidate in candidates:
        if candidate.recipe.makes_checkpoint:
            check_storages(candidate.recipe, candidate.plan, weights)
    return candidates


def _memory(weights: ModelWeights, local: bool) -> int:
    """Bytes of the weights in FP32: of all, or of the largest step."""
    sizes: dict[str, int] = {}
    for name in weights.names():
        step = ".".join(name.split(".")[:3])
        sizes[step] = sizes.get(step, 0) + _FP32_BYTES * torch.Size(weights.shape(name)).numel()
    return max(sizes.values()) if local else sum(sizes.values())


def _physical_memory(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
