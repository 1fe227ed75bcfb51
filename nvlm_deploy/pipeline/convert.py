"""Stage: another layout -> a checkpoint in the released layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_deploy.checkpoint.megatron import import_megatron
from nvlm_deploy.checkpoint.parts import PartReader, PartSource, assembled_config
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.checkpoint.summary import CheckpointSummary, summarize
from nvlm_deploy.checkpoint.weight_table import released_tensors
from nvlm_deploy.checkpoint.writer import ShardedWriter, copy_companion_files
from nvlm_deploy.config.cross_attention import every
from nvlm_deploy.config.model import NvlmConfig, Variant
from nvlm_deploy.errors import UsageError
from nvlm_deploy.pipeline.atomic import atomic_directory
from nvlm_deploy.preprocess.tokenizer import add_special_tokens
from nvlm_deploy.progress import ProgressCallback, no_progress


def convert_megatron(
    source: Path, hf_dir: Path, output: Path, progress: ProgressCallback = no_progress
) -> CheckpointSummary:
    """Convert a Megatron-core checkpoint; config, tokenizer and preprocessor files come from `hf_dir`.

    Raises:
        UsageError: `output` exists.
        NvlmError: the checkpoint is incomplete or of another shape; nothing is left behind.
    """
    with atomic_directory(output) as work:
        import_megatron(source, hf_dir, work, progress=progress)
        # What was written is a checkpoint only if it opens as one.
        return summarize(CheckpointReader(work))


@dataclass(frozen=True, slots=True)
class AssembleRequest:
    """A new model of a variant, made of a language model and a vision tower.

    layers: decoder layers with cross-attention; None takes the last of every eight, as the 72B has them.
    overrides: other fields of `cross_attention_config`.
    """

    language: Path
    vision: Path
    variant: Variant
    output: Path
    layers: tuple[int, ...] | None = None
    overrides: tuple[tuple[str, object], ...] = ()
    seed: int = 0


def assemble(
    request: AssembleRequest, progress: ProgressCallback = no_progress
) -> tuple[CheckpointSummary, tuple[str, ...]]:
    """Write the checkpoint of a new model; return its summary and the names of its new tensors.

    Gates are zero, so a new NVLM-X answers text as the language model does, with and without images.

    Raises:
        UsageError: `output` exists, or layers are given for an NVLM-D.
        NvlmError: a part is incomplete or does not fit; nothing is left behind.
    """
    language, vision = PartSource.open(request.language), PartSource.open(request.vision)
    raw = assembled_config(language, vision, request.variant, _cross_attention(request, language))
    config = NvlmConfig.from_dict(raw, source="the config of these parts")
    reader = PartReader(config, language, vision, request.seed)
    with atomic_directory(request.output) as work:
        copy_companion_files(request.language, work)
        for code in work.glob("*.py"):
            code.unlink()
        (work / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        add_special_tokens(work, config.language.vocab_size)
        with ShardedWriter(work, config, progress=progress) as writer:
            for tensor in released_tensors(config):
                writer.write(tensor.name, reader.read(tensor))
        return summarize(CheckpointReader(work)), tuple(reader.new)


def _cross_attention(request: AssembleRequest, language: PartSource) -> dict[str, object] | None:
    if request.variant == "D":
        if request.layers is not None or request.overrides:
            raise UsageError("an NVLM-D has no cross-attention", hint="use --variant X or H")
        return None
    layers: Sequence[int] = request.layers or ()
    if request.layers is None:
        layers = every(8, int(language.section("llm_config").get("num_hidden_layers", 0)))
    return {"layers": list(layers), **dict(request.overrides)}
