"""Go through a model step by step, with the inputs of every linear at hand, and quantize single units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.sensitivity import OptionLoss, UnitLoss
from nvlm_deploy.eval.agreement import Agreement
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.quantization.observe import Observed
from nvlm_deploy.quantization.search import ScaleSearch
from nvlm_deploy.quantization.stream import CalibrationStream
from nvlm_deploy.sensitivity.measure import KlMeasure, Loss, Measure
from nvlm_deploy.sensitivity.options import Candidate, Option, Unit
from nvlm_deploy.sensitivity.simulate import Linears, quantized_linears


def measure_units(
    stream: CalibrationStream,
    units: Sequence[Unit],
    measure: Measure,
    progress: ProgressCallback = no_progress,
) -> list[UnitLoss]:
    """Measure the loss of every option of every unit, all other units being as released.

    Args:
        stream: shows the calibration set; without samples, options must need no calibration.
    """
    by_step: dict[str, list[Unit]] = {}
    for unit in units:
        by_step.setdefault(unit.step, []).append(unit)
    done, total = 0, sum(len(unit.options) - 1 for unit in units)
    results: list[UnitLoss] = []
    with measure.open():
        for index, step in enumerate(stream.steps):
            seen = _observe(stream, index)
            measure.enter(index)
            for unit in by_step.get(step.name, ()):
                losses = [
                    OptionLoss(label=unit.options[0].label, recipe=None, nbytes=2 * unit.weights, loss=0.0)
                ]
                for option in unit.options[1:]:
                    linears = _option_linears(stream, index, option, seen)
                    losses.append(_option_loss(option, measure.score(index, linears)))
                    done += 1
                    progress("sensitivity", done, total)
                results.append(_unit_loss(unit, losses))
            measure.leave(index)
            stream.finish(index)
    return results


def measure_recipe(
    stream: CalibrationStream,
    candidate: Candidate,
    measure: KlMeasure,
    progress: ProgressCallback = no_progress,
) -> Agreement:
    """Compare the model with all of a recipe's linears quantized to the model as released."""
    search = _search(stream, candidate)
    with measure.open():
        for index, step in enumerate(stream.steps):
            seen = _observe(stream, index)
            measure.replace_for_good(quantized_linears(search, step.groups, seen))
            stream.finish(index)
            progress("check", index + 1, len(stream.steps))
        return measure.compare_all()


def _observe(stream: CalibrationStream, index: int) -> Mapping[str, Observed]:
    return stream.observe(index) if len(stream.samples) else {}


def _option_linears(
    stream: CalibrationStream, index: int, option: Option, seen: Mapping[str, Observed]
) -> Linears:
    assert option.candidate is not None, "16 bits are not measured"
    groups = [group for group in stream.steps[index].groups if group.weights[0] in option.storages]
    return quantized_linears(_search(stream, option.candidate), groups, seen)


def _search(stream: CalibrationStream, candidate: Candidate) -> ScaleSearch:
    storages = {name: tensor.storage for name, tensor in candidate.plan.tensors.items()}
    weights: ModelWeights = stream.model.weights
    return ScaleSearch(candidate.recipe, storages, weights, torch.device(stream.model.device))


def _option_loss(option: Option, loss: Loss) -> OptionLoss:
    assert option.candidate is not None, "16 bits are not measured"
    return OptionLoss(
        label=option.label,
        recipe=option.candidate.recipe.name,
        nbytes=option.nbytes,
        loss=loss.value if math.isfinite(loss.value) else None,
        top1=loss.top1,
    )


def _unit_loss(unit: Unit, losses: list[OptionLoss]) -> UnitLoss:
    return UnitLoss(name=unit.name, part=unit.part, weights=unit.weights, options=losses)
