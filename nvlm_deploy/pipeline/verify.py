"""Stage: an engine bundle, or a quantized checkpoint, held against the released checkpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

import nvlm_deploy
from nvlm_deploy.backends.protocol import SessionOptions
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.config.kit import KIT_NAME
from nvlm_deploy.config.machine import tool_versions
from nvlm_deploy.config.manifest import MANIFEST_NAME, EngineManifest
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.suitability import VERIFIABLE_BACKEND
from nvlm_deploy.config.thresholds import VerifyThresholds
from nvlm_deploy.config.validation import explain
from nvlm_deploy.config.verified import write_result
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError
from nvlm_deploy.models.device import open_device
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.quantization.record import QuantizationRecord
from nvlm_deploy.quantization.streamed_model import StreamedModel
from nvlm_deploy.quantization.unified import QUANT_CONFIG_NAME
from nvlm_deploy.verify.checkpoint_subject import CheckpointSubject
from nvlm_deploy.verify.checks import (
    Check,
    TaskRow,
    contract_checks,
    kv_cache_checks,
    layer_checks,
    logit_checks,
    reaction_checks,
    task_checks,
    weight_checks,
)
from nvlm_deploy.verify.compare import answered_right, compare_answer, mean_figures
from nvlm_deploy.verify.contract import Contract
from nvlm_deploy.verify.contract_check import check_contract
from nvlm_deploy.verify.engine_subject import EngineSubject
from nvlm_deploy.verify.measure import Measured, PromptSet, SubjectOutputs, measure
from nvlm_deploy.verify.prompts import ROW_OF_KIND
from nvlm_deploy.verify.report import VerifyReport, worst_first
from nvlm_deploy.verify.states import Rows
from nvlm_deploy.verify.walk import ModelWalk, WalkResult

DEFAULT_SAMPLES, QUICK_SAMPLES = 40, 10
LEAST_SAMPLES = len(ROW_OF_KIND)
_TOOLS = ("numpy", "onnxruntime", "pillow", "tokenizers", "torch")


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """How much is looked at, and how.

    samples: questions about images, at least 5. device: of the PyTorch reference. threads, memory and
    engine_device are the engine's, as in `nvlm-build run`. probes: a JSONL file of questions to ask instead.
    """

    samples: int = DEFAULT_SAMPLES
    device: str = "cpu"
    threads: int | None = None
    memory: Literal["fast", "mapped"] = "fast"
    engine_device: str = "cpu"
    probes: Path | None = None

    def __post_init__(self) -> None:
        if self.samples < LEAST_SAMPLES:
            raise UsageError(f"samples is {self.samples}; one of every kind needs at least {LEAST_SAMPLES}")


def verify_bundle(
    bundle: Path,
    against: Path,
    options: VerifyOptions | None = None,
    progress: ProgressCallback = no_progress,
) -> VerifyReport:
    """Hold an engine bundle against the checkpoint that it was built from; its manifest gets the result.

    A result that does not pass is noted, too; `VerifyReport.require_passed` raises then.

    Raises:
        UsageError: the bundle was built from another checkpoint.
        NvlmError: bundle or checkpoint is not in order.
    """
    began, options = time.perf_counter(), options or VerifyOptions()
    wanted = SessionOptions(options.threads, options.memory, options.engine_device)
    backend = EngineManifest.read(bundle).backend
    if backend != VERIFIABLE_BACKEND:
        raise UnsuitableError(
            f"{bundle} was compiled by {backend}, and only graphs of ONNX Runtime can be looked into",
            hint="give --against the kit that it was compiled from, or compare answers on its device with "
            "nvlm-eval; the same recipe can be verified with --target cpu-x86",
        )
    subject = EngineSubject(bundle, wanted, progress)
    manifest = subject.bundle.manifest
    weights = _open_reference(against, manifest.checkpoint_fingerprint, bundle)
    limits = _thresholds(manifest.recipe, bundle / MANIFEST_NAME)
    contract = Contract(bundle, manifest.prompt.mode)
    prompts = _prompts(contract, options)
    reference = _reference(weights, prompts, options.device, progress)
    # Looking into the graphs opens them once more, so it comes before the engine is opened.
    states = subject.states(*prompts.probed_prompts(reference))
    found = SubjectOutputs(
        subject.weights(weights), states, subject.logits(prompts.all), subject.answers(prompts.images)
    )
    measured = measure(weights.reader.config, prompts, reference, found)
    checks = [
        *contract_checks(check_contract(subject.engine, contract, prompts.asked)),
        *_checks(measured, limits),
    ]
    report = _report(
        ("engine", str(bundle), str(against)),
        (str(manifest.recipe.get("name")), str(manifest.target.get("name"))),
        (manifest.checkpoint_fingerprint, began),
        checks,
        measured,
    )
    write_result(bundle, manifest, {**report.summary(), "device": options.engine_device})
    return report


def verify_checkpoint(
    quantized: Path,
    against: Path,
    options: VerifyOptions | None = None,
    progress: ProgressCallback = no_progress,
) -> VerifyReport:
    """Hold a quantized checkpoint against the released one in PyTorch; an FP8 KV cache with and without.

    The quantized checkpoint is in memory whole, in FP32, and nothing is written into it.

    Raises:
        UsageError: it was made from another checkpoint.
        NvlmError: one of them is not in order.
    """
    began, options = time.perf_counter(), options or VerifyOptions()
    made = QuantizationRecord.read(quantized)
    recipe = made.recipe()
    weights = _open_reference(against, made.fingerprint, quantized)
    prompts = _prompts(Contract(against), options)
    reference = _reference(weights, prompts, options.device, progress)
    subject = CheckpointSubject(quantized, open_device(options.device), progress)
    states, logits = subject.states(*prompts.probed_prompts(reference)), subject.logits(prompts.all)
    found = SubjectOutputs(subject.weights(weights), states, logits, answers=None)
    measured = measure(weights.reader.config, prompts, reference, found)
    limits = recipe.verify
    checks = _checks(measured, limits)
    if subject.has_fp8_kv_cache:
        with subject.with_plain_kv_cache():
            plain = subject.logits(prompts.asked)
        checks += _kv_cache_checks(prompts, plain, logits, limits)
    return _report(
        ("checkpoint", str(quantized), str(against)),
        (recipe.name, "-"),
        (made.fingerprint, began),
        checks,
        measured,
    )


def verify(
    subject: Path,
    against: Path,
    options: VerifyOptions | None = None,
    progress: ProgressCallback = no_progress,
) -> VerifyReport:
    """Hold a bundle or a quantized checkpoint, whichever `subject` is, against the released checkpoint.

    A bundle that was compiled from a kit is held against the kit, if that is what `against` is.
    """
    options = options or VerifyOptions()
    if (against / KIT_NAME).exists():
        from nvlm_deploy.pipeline.verify_kit import verify_with_kit

        if options.probes is not None:
            raise UsageError(
                f"{against} is a kit, which has its own probes",
                hint="leave --probes out, or give --against the checkpoint",
            )
        return verify_with_kit(subject, against)
    open_device(options.device)
    if (subject / MANIFEST_NAME).exists():
        return verify_bundle(subject, against, options, progress)
    if (subject / QUANT_CONFIG_NAME).exists():
        return verify_checkpoint(subject, against, options, progress)
    raise NvlmError(
        f"{subject} is neither an engine bundle nor a quantized checkpoint: it has no {MANIFEST_NAME} and "
        f"no {QUANT_CONFIG_NAME}",
        hint="make one with nvlm-build engine or nvlm-build quantize",
    )


def _prompts(contract: Contract, options: VerifyOptions) -> PromptSet:
    if options.probes is not None:
        return PromptSet.from_file(contract, options.probes)
    return PromptSet.make(contract, options.samples)


def _open_reference(against: Path, fingerprint: str, subject: Path) -> ModelWeights:
    if (against / QUANT_CONFIG_NAME).exists():
        raise UsageError(
            f"{against} is quantized itself",
            hint="give --against the released checkpoint that it was made from",
        )
    weights = ModelWeights(CheckpointReader(against))
    found = weights.reader.fingerprint()
    if found != fingerprint:
        raise UsageError(
            f"{subject} was not made from {against}: its checkpoint's fingerprint is {fingerprint[:16]}, and "
            f"this one's is {found[:16]}",
            hint="give --against the checkpoint that it was built from, or build it again from this one",
        )
    return weights


def _reference(
    weights: ModelWeights, prompts: PromptSet, device: str, progress: ProgressCallback
) -> WalkResult:
    return ModelWalk(StreamedModel(weights, open_device(device)), progress).run(
        prompts.all, frozenset(prompts.probed)
    )


def _thresholds(recipe: dict[str, Any], source: Path) -> VerifyThresholds:
    try:
        return Recipe.model_validate(recipe).verify
    except ValidationError as error:
        raise explain(error, Recipe, f"{source}: recipe") from None


def _checks(measured: Measured, limits: VerifyThresholds) -> list[Check]:
    return [
        *weight_checks(measured.weights, limits),
        *layer_checks(measured.layers, limits),
        *logit_checks(measured.image, measured.text, limits),
        *task_checks(measured.tasks, limits),
        *reaction_checks(measured.reaction, limits),
    ]


def _kv_cache_checks(
    prompts: PromptSet, plain: Sequence[Rows], quantized: Sequence[Rows], limits: VerifyThresholds
) -> list[Check]:
    count = len(prompts.images)
    triples = list(zip(prompts.images, plain[:count], quantized[:count], strict=True))
    added = mean_figures([compare_answer(prompt, a, b) for prompt, a, b in triples])
    before = sum(answered_right(prompt, a) for prompt, a, _ in triples)
    after = sum(answered_right(prompt, b) for prompt, _, b in triples)
    return kv_cache_checks(added, TaskRow("all", len(triples), before, after), limits)


def _report(
    named: tuple[str, str, str],
    made: tuple[str, str],
    run: tuple[str, float],
    checks: Sequence[Check],
    measured: Measured,
) -> VerifyReport:
    kind, subject, against = named
    return VerifyReport(
        subject=subject,
        against=against,
        kind=kind,
        recipe=made[0],
        target=made[1],
        checkpoint_fingerprint=run[0],
        versions={"nvlm-deploy": nvlm_deploy.__version__, **tool_versions(_TOOLS)},
        seconds=time.perf_counter() - run[1],
        checks=tuple(checks),
        weights=measured.weights,
        layers=measured.layers,
        tasks=measured.tasks,
        reaction=measured.reaction,
        examples=worst_first(measured.examples),
    )
