"""Stage: checkpoint -> build kit, for engines that can be compiled on their device alone.

Everything that needs no GPU is done here: quantization, graphs, the TensorRT-LLM checkpoint, tokenizer, and
what the reference makes of a few questions. A run that was stopped goes on behind its last finished piece.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nvlm_deploy.backends.makers import EngineSettings
from nvlm_deploy.config.kit import KIT_NAME, KIT_VERSION, BuildKit, KitPart
from nvlm_deploy.config.manifest import collect_files
from nvlm_deploy.config.strict_json import from_json, to_json
from nvlm_deploy.config.target import Target
from nvlm_deploy.doctor import System
from nvlm_deploy.errors import UsageError
from nvlm_deploy.pipeline.compile_plan import PLAN_KEY, doctor_errors, language_settings
from nvlm_deploy.pipeline.engine import copy_files, prepared_weights, settled_manifest, tried_tiles
from nvlm_deploy.pipeline.export_tensorrt_llm import CLASS_FILE
from nvlm_deploy.pipeline.kit_cross import builder_command
from nvlm_deploy.pipeline.kit_page import kit_page
from nvlm_deploy.pipeline.kit_parts import KitWriter, plan_parts
from nvlm_deploy.pipeline.kit_probes import PROBE_STAGE, make_probes
from nvlm_deploy.pipeline.plan import EnginePlan
from nvlm_deploy.pipeline.resumable import resumable_directory
from nvlm_deploy.pipeline.verify_kit import PROBES_FOLDER
from nvlm_deploy.preprocess.assembly import tile_tags
from nvlm_deploy.progress import ProgressCallback, no_progress

README_NAME = "README.md"
# What the manifest says of itself already.
_SAID_BEFORE = ("recipe", "target", "variant", "backend")
# Backends whose engines are compiled on their device alone.
KIT_BACKENDS = ("tensorrt", "tensorrt_llm")


@dataclass(frozen=True, slots=True)
class KitOptions:
    """What a kit has beside its plan.

    reference: the checkpoint in full precision that probes are made
    with; None leaves them out. device: where it computes.
    """

    reference: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class KitResult:
    """A finished kit."""

    directory: Path
    kit: BuildKit
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        return {"kit": str(self.directory), "seconds": round(self.seconds, 3), **to_json(self.kit)}


def write_kit(plan: EnginePlan, options: KitOptions, progress: ProgressCallback = no_progress) -> KitResult:
    """Run `plan` as far as it goes without its device. The kit appears at `plan.output` whole or not at all.

    Raises:
        UsageError: the output exists.
        UsageError: engines of the backend need no kit.
        UnsuitableError: the engine does not fit the device, or the release of TensorRT-LLM cannot carry the
            checkpoint.
        NvlmError: the disk is full, or a tensor cannot be stored as planned.
    """
    start = time.perf_counter()
    _require_kit_backend(plan.target)
    plan.device.require_fit()
    if plan.config.cross_attention is not None:
        # Nothing asks them yet: see `nvlm_deploy.runtime.bundle.open_engine`.
        options = replace(options, reference=None)
    weights, record = prepared_weights(plan, progress)
    results = {
        PLAN_KEY: {name: value for name, value in plan.device.to_dict().items() if name not in _SAID_BEFORE}
    }
    manifest = replace(settled_manifest(plan, record, {}), results=results)
    writers = plan_parts(weights, plan.config, plan.quantization, _settings(plan), plan.device)
    key = {
        "manifest": to_json(manifest),
        "parts": [writer.key for writer in writers],
        "of": _probes_key(options),
    }
    # Through JSON, as it is read again: lists instead of tuples.
    with resumable_directory(plan.output, json.loads(json.dumps(key))) as work:
        copy_files(plan, work.result)
        parts = []
        for number, writer in enumerate(writers):
            note = work.finished(number)
            if note is None:
                note = to_json(_write_part(writer, work.result, progress))
                work.finish(number, note)
            parts.append(from_json(KitPart, note, f"{KIT_NAME}: {writer.part}"))
        if options.reference is not None and work.finished(len(writers)) is None:
            folder = work.result / PROBES_FOLDER
            make_probes(folder, options.reference, options.device, progress)
            work.finish(len(writers), {"stage": PROBE_STAGE})
        kit = BuildKit(KIT_VERSION, manifest, tuple(parts), options.reference is not None, ())
        (work.result / README_NAME).write_text(kit_page(kit, _builder(kit, work.result)), encoding="utf-8")
        kit = replace(kit, files=collect_files(work.result, progress))
        kit.write(work.result)
    if plan.quantize is not None:
        shutil.rmtree(plan.quantize.output)
    return KitResult(plan.output, kit, time.perf_counter() - start)


def _write_part(writer: KitWriter, result: Path, progress: ProgressCallback) -> KitPart:
    return writer.write(result, lambda part, piece, done, total: progress(part, done, total))


def _settings(plan: EnginePlan) -> EngineSettings:
    tags = tile_tags(plan.tokenizer, plan.config)
    return EngineSettings(plan.context, plan.target, partial(tried_tiles, plan), tags=tags)


def _builder(kit: BuildKit, directory: Path) -> str | None:
    """How TensorRT-LLM's own builder is called where a kit brings the model class for it."""
    if not (directory / kit.part("llm").source / CLASS_FILE).exists():
        return None
    arguments = language_settings(directory, kit)[2]
    assert arguments is not None, "the class is for a checkpoint of TensorRT-LLM"
    return builder_command(arguments)


def _probes_key(options: KitOptions) -> str | None:
    return None if options.reference is None else str(options.reference.absolute())


def _require_kit_backend(target: Target) -> None:
    if target.backend not in KIT_BACKENDS:
        raise UsageError(
            f"{target.backend} engines for {target.name} are built anywhere: there are no kits for them",
            hint="leave --kit out",
        )


def missing_for(target: Target, system: System | None = None) -> list[str]:
    """What this machine lacks to compile engines for `target`, in words."""
    if target.backend not in KIT_BACKENDS:
        return []
    return doctor_errors(target.model_dump(mode="json"), system)
