"""What a run leaves: a checkpoint in the released layout, or adapters in peft's format."""

from __future__ import annotations

from pathlib import Path

from nvlm_deploy.checkpoint import ShardedWriter, copy_companion_files, save_model
from nvlm_deploy.checkpoint.weight_table import model_table
from nvlm_deploy.checkpoint.writer import DEFAULT_SHARD_BYTES
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.models.loading import load_model
from nvlm_deploy.pipeline.atomic import atomic_directory
from nvlm_deploy.train.build import Prepared
from nvlm_deploy.train.lora import merged_model, save_adapters
from nvlm_deploy.train.parallel import Processes, whole


def export_checkpoint(prepared: Prepared, source: Path, output: Path, processes: Processes) -> None:
    """Write the model in the released layout; every process calls this, and one tensor is gathered at a time.

    Args:
        source: the checkpoint that training started from, whose config and tokenizer files are copied.
    """
    table = model_table(prepared.model.config).inverse()
    state = dict(prepared.model.named_parameters())
    tensors = table.convert(lambda name: whole(state[name]))
    if not processes.main:
        for _ in tensors:
            pass
        return
    with atomic_directory(output) as work:
        copy_companion_files(source, work)
        with ShardedWriter(work, prepared.model.config) as writer:
            for name, tensor in tensors:
                writer.write(name, tensor)


def export_adapters(prepared: Prepared, output: Path, processes: Processes) -> None:
    """Write the adapters in peft's format; every process calls this."""
    assert prepared.wrapped is not None, "asked of runs with adapters alone"
    trained = {name: p for name, p in prepared.model.named_parameters() if p.requires_grad}
    values = {name: whole(parameter) for name, parameter in trained.items()}
    if processes.main:
        with atomic_directory(output) as work:
            save_adapters(prepared.wrapped, values, work)


def merge_adapters(
    checkpoint: Path, adapters: Path, output: Path, max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> None:
    """Add adapters to the checkpoint that they were trained on, and write the sum in the released layout.

    Raises:
        UsageError: `output` exists.
        NvlmError: the adapters do not fit the checkpoint.
    """
    with atomic_directory(output) as work:
        model = merged_model(load_model(checkpoint), adapters)
        copy_companion_files(checkpoint, work)
        state = dict(model.named_parameters())
        save_model(state, NvlmConfig.from_directory(checkpoint), work, max_shard_bytes)
