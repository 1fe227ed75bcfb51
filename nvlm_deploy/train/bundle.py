"""A finished run as one directory: the checkpoint, a calibration set and held-out probes of its own data.

`nvlm-build engine DIR/checkpoint --calibration DIR/calibration.yaml` and `nvlm-build verify ... --probes
DIR/probes/probes.jsonl` take it as it is. Images are written as PNG from their decoded pixels, and only
samples that trainer and engine tile alike are taken, so token ids and tiles are those of the training.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.calibration.sample import build_sample
from nvlm_deploy.calibration.sources import ConversationSource
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.pipeline.atomic import atomic_directory
from nvlm_deploy.preprocess.images import load_image
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.preprocess.tokenizer import Tokenizer
from nvlm_deploy.train.build import model_directory
from nvlm_deploy.train.data.sample import build_train_sample
from nvlm_deploy.train.export import merge_adapters
from nvlm_deploy.train.plan import TrainingPlan
from nvlm_deploy.train.state import finished_run
from nvlm_deploy.verify.probe_file import single_question

BUNDLE_NAME, CALIBRATION_NAME = "bundle.json", "calibration.yaml"
# Draws that are tried for each sample of the calibration set: small sources repeat, and some are too long.
_TRIES = 8


@dataclass(frozen=True, slots=True)
class BundleOptions:
    """How many samples are taken. `licence`: of the training data, written into the calibration set."""

    calibration: int
    probes: int
    licence: str


@dataclass(frozen=True, slots=True)
class ExportedBundle:
    """What was written. `calibration`, `probes`: how many samples."""

    directory: Path
    calibration: int
    probes: int


@dataclass(frozen=True, slots=True)
class _Taken:
    """A conversation of a source, and the digest of its ids and tiles."""

    source: str
    conversation: Conversation
    digest: str


def export_bundle(plan: TrainingPlan, output: Path, options: BundleOptions) -> ExportedBundle:
    """Write the bundle of a finished run; a run with adapters has them merged.

    Raises:
        UsageError: the run is not finished, holds no conversations out, or tokenizes otherwise than engines;
            `output` exists.
        NvlmError: nothing of the data can be taken, or no held-out conversation asks about an image.
    """
    config = plan.config
    if config.data.tokenization != "hf":
        raise UsageError(
            f"the run has data.tokenization {config.data.tokenization}, and engines tokenize as hf",
            hint="train with data.tokenization=hf for a bundle whose ids are the engine's",
        )
    if not config.data.held_out:
        raise UsageError("the run holds nothing out: data.held_out is 0", hint="train with data.held_out=40")
    trained = finished_run(config, plan.total_steps)
    with atomic_directory(output) as work:
        checkpoint = work / "checkpoint"
        if config.lora is not None:
            merge_adapters(model_directory(config), trained, checkpoint)
        else:
            shutil.copytree(trained, checkpoint)
        _limit_tiles(checkpoint, config.data.max_tiles)
        builder = PromptBuilder(Tokenizer.from_directory(checkpoint), NvlmConfig.from_directory(checkpoint))
        shown = _shown(plan, builder, options.calibration)
        asked = _asked(plan, builder, options.probes)
        _write(work / "calibration" / "samples.jsonl", shown)
        _write(work / "probes" / "probes.jsonl", asked)
        (work / CALIBRATION_NAME).write_text(_calibration_set(plan, len(shown), options), encoding="utf-8")
        facts = _facts(plan, builder, shown, asked)
        text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
        (work / BUNDLE_NAME).write_text(text, encoding="utf-8")
    return ExportedBundle(output, len(shown), len(asked))


def _shown(plan: TrainingPlan, builder: PromptBuilder, count: int) -> list[_Taken]:
    """The first `count` different samples of the run's own order."""
    found: list[_Taken] = []
    seen: set[tuple[int, int]] = set()
    for draw in itertools.islice(plan.order(), _TRIES * count):
        if (draw.source, draw.index) in seen:
            continue
        seen.add((draw.source, draw.index))
        taken = _take(plan, builder, draw.source, partial(plan.opened[draw.source].__getitem__, draw.index))
        if taken is not None:
            found.append(taken)
        if len(found) == count:
            break
    if not found:
        raise NvlmError(
            "no sample of the run fits without fewer tiles", hint="train with a larger data.max_length"
        )
    return found


def _asked(plan: TrainingPlan, builder: PromptBuilder, count: int) -> list[_Taken]:
    """Up to `count` held-out questions, source by source in turn."""
    rows = [[(number, held) for held in part.held_out] for number, part in enumerate(plan.opened)]
    found: list[_Taken] = []
    for number, held in (each for row in itertools.zip_longest(*rows) for each in row if each is not None):
        if len(found) == count:
            break
        taken = _take(plan, builder, number, partial(_first_question, plan.opened[number].source, held))
        if taken is not None:
            found.append(taken)
    if not any(each.conversation.images for each in found):
        raise NvlmError(
            "no held-out conversation begins with a question about one image", hint="raise data.held_out"
        )
    return found


def _take(
    plan: TrainingPlan, builder: PromptBuilder, source: int, read: Callable[[], Conversation | None]
) -> _Taken | None:
    """A conversation that trainer and engine see alike: not one that is broken or gets fewer tiles to fit."""
    try:
        conversation = read()
        if conversation is None:
            return None
        trained = build_train_sample(conversation, builder, plan.config.data, source)
        sample = build_sample(conversation, builder)
    except NvlmError:
        return None
    if not np.array_equal(trained.answered.input_ids, sample.input_ids):
        return None
    return _Taken(plan.names[source], conversation, sample.digest().hex())


def _first_question(source: ConversationSource, index: int) -> Conversation | None:
    """What comes before the second question; None if that is no single question about at most one image."""
    conversation = source[index]
    messages = [*conversation.prompt, {"role": "assistant", "content": conversation.answer or ""}]
    first = Conversation.of(conversation.label, messages[:2], conversation.images)
    return None if single_question(first) is None else first


def _write(path: Path, taken: Sequence[_Taken]) -> None:
    """A line for each conversation, and its images as PNG beside the file."""
    path.parent.mkdir()
    with path.open("w", encoding="utf-8") as file:
        for number, each in enumerate(taken):
            conversation = each.conversation
            names = [f"{number:05}-{place}.png" for place in range(len(conversation.images))]
            for name, image in zip(names, conversation.images, strict=True):
                load_image(image, label=conversation.label).save(path.parent / name)
            messages: list[dict[str, Any]] = [
                {**message, "content": _parts(message["content"])}
                if message["role"] == "user"
                else {**message}
                for message in conversation.prompt
            ]
            messages.append({"role": "assistant", "content": conversation.answer})
            file.write(json.dumps({"images": names, "messages": messages}, ensure_ascii=False) + "\n")


def _parts(content: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Content as a list, in which text is text: in a string, `<image>` would be the place of an image."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": "image"} if part.get("type") == "image" else dict(part) for part in content]


def _limit_tiles(checkpoint: Path, max_tiles: int | None) -> None:
    """Let engines cut images into as many tiles as the trainer did."""
    path = checkpoint / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if max_tiles is not None and max_tiles < config["max_dynamic_patch"]:
        config["max_dynamic_patch"] = max_tiles
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _calibration_set(plan: TrainingPlan, count: int, options: BundleOptions) -> str:
    values = {
        "name": f"{plan.config.name}-training-data",
        "description": f"What the run {plan.config.name} was shown first",
        "licence": options.licence,
        "source": {"kind": "jsonl", "path": "calibration/samples.jsonl"},
        "count": count,
        "seed": plan.config.seed,
        "max_tokens": plan.config.data.max_length,
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _facts(
    plan: TrainingPlan, builder: PromptBuilder, shown: Sequence[_Taken], asked: Sequence[_Taken]
) -> dict[str, Any]:
    """What `bundle.json` says. Digests are those of `CalibrationSample`: token ids and tiles."""
    shape = builder.config

    def rows(taken: Sequence[_Taken]) -> list[dict[str, str]]:
        return [
            {"source": each.source, "label": each.conversation.label, "digest": each.digest} for each in taken
        ]

    return {
        "tiler": {
            "tile_size": shape.tile_size,
            "min_tiles": shape.min_tiles,
            "max_tiles": shape.max_tiles,
            "visual_tokens_per_tile": shape.visual_tokens_per_tile,
        },
        "prompt": {"mode": builder.mode, "chat_template": "chatml"},
        "calibration": rows(shown),
        "probes": rows(asked),
        "training": plan.config.to_dict(),
    }
