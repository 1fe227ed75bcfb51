"""Build an ONNX Runtime engine: the vision and decoder graphs of one checkpoint under one plan."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvlm_deploy.backends.makers import BuildProgress, EngineSettings
from nvlm_deploy.backends.onnxruntime.lower import lower
from nvlm_deploy.backends.onnxruntime.storage import adapt
from nvlm_deploy.backends.sections import decoder_section, vision_section
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.export import Progress, WeightReader, build_decoder, build_vision, write_model
from nvlm_deploy.quantization.plan import QuantizationPlan

logger = logging.getLogger(__name__)

# Where a graph keeps what its bundle was made of.
RECORD_KEY = "nvlm.record"

__all__ = ["EngineSettings", "adapt", "build_engine", "check", "disk_bytes", "files", "tools"]

VISION_PATH = "vision/vision.onnx"
DECODER_PATH = "llm/decoder.onnx"


def files() -> tuple[str, ...]:
    """See `EngineMaker.files`."""
    return tuple(path + suffix for path in (VISION_PATH, DECODER_PATH) for suffix in ("", ".data"))


def disk_bytes(plan: QuantizationPlan) -> int:
    """See `EngineMaker.disk_bytes`."""
    return sum(part.after for part in plan.sizes())


def tools() -> Mapping[str, str]:
    """See `EngineMaker.tools`; ONNX Runtime is among what all bundles are made with."""
    return {}


def check(config: NvlmConfig, plan: QuantizationPlan, settings: EngineSettings) -> None:
    """Find out before the first second of work what this backend cannot do.

    Raises:
        UnsuitableError: names what is asked for and what there is.
    """
    if plan.kv_cache != "fp32":
        raise UnsuitableError(
            f"recipe {plan.recipe}: kv_cache is {plan.kv_cache}, and ONNX Runtime's CPU attention takes fp32",
            hint="use --set kv_cache=fp32",
        )
    limit = config.language.max_position_embeddings
    if not 1 <= settings.context_length <= limit:
        raise UnsuitableError(
            f"a context of {settings.context_length} tokens is outside this model's [1, {limit}]"
        )


def build_engine(
    weights: WeightReader,
    config: NvlmConfig,
    plan: QuantizationPlan,
    settings: EngineSettings,
    output: Path,
    progress: BuildProgress | None = None,
) -> dict[str, Any]:
    """Write `vision/` and `llm/` below `output` and describe them for the manifest.

    Memory: one piece of one tensor; nothing of the checkpoint stays loaded.

    Returns:
        The manifest's sections `vision` and `llm`.

    Raises:
        UnsuitableError: see `check`.
        NvlmError: the disk is full, or a weight cannot be stored as planned.
    """
    check(config, plan, settings)
    vision = lower(build_vision(config, weights, plan))
    decoder = lower(build_decoder(config.language, weights, plan, settings.context_length))
    sections = {
        "vision": vision_section(config, vision, model=VISION_PATH, data=f"{VISION_PATH}.data"),
        "llm": decoder_section(
            config, decoder, settings.context_length, model=DECODER_PATH, data=f"{DECODER_PATH}.data"
        ),
    }
    if settings.record is not None:
        for model in (vision, decoder):
            model.metadata_props[RECORD_KEY] = json.dumps(settings.record, ensure_ascii=False)
    for part, path, model in (("vision", VISION_PATH, vision), ("llm", DECODER_PATH, decoder)):
        target = output / path
        target.parent.mkdir(parents=True, exist_ok=True)
        logger.info("writing %s", target)
        write_model(model, target, _for_part(progress, part))
    return sections


def _for_part(progress: BuildProgress | None, part: str) -> Progress | None:
    if progress is None:
        return None
    return lambda name, done, total: progress(part, name, done, total)
