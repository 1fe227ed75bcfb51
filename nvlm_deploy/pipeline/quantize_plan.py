"""The plan of a quantization: everything that can be known before the calibration set is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.calibration import CalibrationSamples
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.checkpoint.weight_table import expected_tensors, model_table
from nvlm_deploy.config.calibration import CalibrationSet, read_calibration_set
from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.manifest import PartSize
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.suitability import check_target
from nvlm_deploy.config.target import load_target
from nvlm_deploy.errors import UnsuitableError, UsageError
from nvlm_deploy.models.device import open_device
from nvlm_deploy.pipeline.atomic import check_output, require_space
from nvlm_deploy.pipeline.resumable import unfinished_bytes
from nvlm_deploy.preprocess.tokenizer import Tokenizer
from nvlm_deploy.quantization.plan import LM_HEAD, QuantizationPlan, resolve
from nvlm_deploy.quantization.statistics import spool_bytes
from nvlm_deploy.quantization.unified import QUANT_CONFIG_NAME, quant_algorithm

DEFAULT_CALIBRATION = "documents"
CALIBRATION_PREFIX = "calibration."


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What a user asks for. `overrides` are `key.path=value`, for the set with `calibration.` before them.

    intermediate: `output` lies on the way to something else; what an earlier run left there is taken if it
    is the same, and replaced if not.
    """

    checkpoint: Path
    recipe: str
    output: Path
    calibration: str = DEFAULT_CALIBRATION
    target: str | None = None
    overrides: tuple[str, ...] = ()
    device: str = "cpu"
    intermediate: bool = False


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """A quantization that can start."""

    output: Path
    weights: ModelWeights
    tokenizer: Tokenizer
    recipe: Recipe
    calibration: CalibrationSet | None
    calibration_directory: Path
    quantization: QuantizationPlan
    device: str
    intermediate: bool

    @property
    def checkpoint(self) -> Path:
        return self.weights.reader.directory

    @property
    def sizes(self) -> tuple[PartSize, ...]:
        """Bytes of every part's weights before and after, with the embedding as released."""
        return self.quantization.sizes()

    def disk_needed(self, samples: CalibrationSamples | None = None) -> int:
        """Bytes of the checkpoint, and of the hidden states of `samples` before and behind one step."""
        reader, needed = self.weights.reader, 0
        for rule in model_table(reader.config).rules:
            info, storage = reader.info(rule.sources[0]), self.quantization.storage(rule.targets[0])
            needed += storage.nbytes(info.shape) if storage.algorithm else info.num_bytes
        if samples is None:
            return needed
        return needed + spool_bytes(reader.config, samples.summary)

    def check_disk(self, samples: CalibrationSamples | None = None) -> None:
        """Check that what is not there yet of `disk_needed` fits.

        Raises:
            UnsuitableError: it does not.
        """
        needed = self.disk_needed(samples) - unfinished_bytes(self.output)
        require_space(self.output, needed, "the quantized checkpoint and the hidden states beside it")

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        return {
            "checkpoint": str(self.checkpoint),
            "output": str(self.output),
            "recipe": self.recipe.model_dump(mode="json"),
            "calibration": self.calibration.model_dump(mode="json") if self.calibration else None,
            "device": self.device,
            "sizes": [asdict(size) for size in self.sizes],
            "disk_needed": self.disk_needed(),
        }


def plan_quantize(request: QuantizeRequest) -> QuantizePlan:
    """Check a request against checkpoint, recipe, set and device; writes nothing.

    Raises:
        UsageError: an unknown name, a refused override, an output that exists, a recipe that makes no
            quantized checkpoint.
        UnsuitableError: the target has no such arithmetic, groups do not divide, there is no such device,
            the disk has too little room.
        NvlmError: the checkpoint, its tokenizer or a file of the catalogs is not in order.
    """
    if not request.intermediate:
        check_output(request.output)
    of_recipe = [text for text in request.overrides if not text.startswith(CALIBRATION_PREFIX)]
    of_set = [
        text.removeprefix(CALIBRATION_PREFIX)
        for text in request.overrides
        if text.startswith(CALIBRATION_PREFIX)
    ]
    recipe = load_yaml_model("recipe", request.recipe, Recipe, of_recipe)
    if not recipe.makes_checkpoint:
        raise UsageError(
            f"recipe {recipe.name} is made while an engine is written, and has no quantized checkpoint",
            hint=f"nvlm-build engine {request.checkpoint} --recipe {recipe.name}",
        )
    if request.target is not None:
        check_target(recipe, load_target(request.target))
    calibration, directory = None, Path()
    if recipe.needs_calibration:
        calibration, directory = read_calibration_set(request.calibration, of_set)
    open_device(request.device)
    if (request.checkpoint / QUANT_CONFIG_NAME).exists():
        raise UsageError(
            f"{request.checkpoint} is quantized already", hint="start from the released checkpoint"
        )
    weights = ModelWeights(CheckpointReader(request.checkpoint))
    quantization = resolve(recipe, {name: weights.shape(name) for name in weights.names()})
    check_storages(recipe, quantization, weights)
    weights.verify_dummy_heads()
    plan = QuantizePlan(
        output=request.output,
        weights=weights,
        tokenizer=Tokenizer.from_directory(request.checkpoint),
        recipe=recipe,
        calibration=calibration,
        calibration_directory=directory,
        quantization=quantization,
        device=request.device,
        intermediate=request.intermediate,
    )
    plan.check_disk()
    return plan


def check_storages(recipe: Recipe, plan: QuantizationPlan, weights: ModelWeights) -> None:
    """Check that a quantized checkpoint can hold what a recipe asks for.

    Raises:
        UnsuitableError: a tied `lm_head` would be quantized, or groups do not divide a row with dummy heads.
        NvlmError: there is no such format in a unified checkpoint.
    """
    if plan.tied and plan.storage(LM_HEAD).quantized:
        raise UnsuitableError(
            f"recipe {recipe.name} quantizes lm_head, which this model ties to its embedding",
            hint="use --set weights.lm_head.format=fp16",
        )
    _check_padded_groups(recipe, plan, weights.reader.config)
    for tensor in plan.tensors.values():
        if tensor.storage.algorithm is not None:
            quant_algorithm(tensor.storage)


def _check_padded_groups(recipe: Recipe, plan: QuantizationPlan, config: NvlmConfig) -> None:
    """On disk, the tower's attention has dummy heads, which groups must divide, too."""
    shapes = expected_tensors(config)
    for rule in model_table(config).rules:
        tensor, shape = plan.tensors[rule.targets[0]], shapes[rule.sources[0]]
        size = tensor.storage.group_size if tensor.storage.algorithm else 0
        if size and shape[1] % size:
            raise UnsuitableError(
                f"recipe {recipe.name}: {rule.sources[0]} has {shape[1]:,} inputs with its dummy heads, "
                f"which groups of {size} do not divide",
                hint=f"use smaller groups, or keep it: a 'keep' rule that matches {rule.targets[0]}",
            )
