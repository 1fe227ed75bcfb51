"""Stage: another layout -> a checkpoint in the released layout."""

from __future__ import annotations

from pathlib import Path

from nvlm_deploy.checkpoint.megatron import import_megatron
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.checkpoint.summary import CheckpointSummary, summarize
from nvlm_deploy.pipeline.atomic import atomic_directory
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
