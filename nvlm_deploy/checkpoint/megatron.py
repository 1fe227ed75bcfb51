"""Import of Megatron-core checkpoints: `iter_*/mp_rank_TT[_PPP]/model_optim_rng.pt`.

All files are opened twice. The first pass only looks at names and shapes, so that an incomplete or
foreign checkpoint fails before anything is written. The second converts one pipeline stage after
the other; its files are mapped, and one rule's tensors are copied at a time.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.checkpoint.megatron_table import (
    WORD_EMBEDDINGS,
    dropped_names,
    megatron_table,
    rank_prefix,
)
from nvlm_deploy.checkpoint.rules import RuleTable, Shape, matches_any
from nvlm_deploy.checkpoint.safe_pickle import load_pickle
from nvlm_deploy.checkpoint.weight_table import expected_tensors
from nvlm_deploy.checkpoint.writer import DEFAULT_SHARD_BYTES, ShardedWriter, copy_companion_files
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.progress import ProgressCallback, no_progress

ITERATION_FILE = "latest_checkpointed_iteration.txt"
RANK_FILE = "model_optim_rng.pt"

_RANK_DIRECTORY = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?")
_LAYER = re.compile(r"/language_model\.decoder\.layers\.(\d+)\.")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Stage:
    """One pipeline stage: a file per tensor-parallel rank, and where its decoder layers begin."""

    files: tuple[Path, ...]
    first_layer: int
    names: frozenset[str]


def import_megatron(
    source: Path,
    hf_dir: Path,
    output: Path,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: ProgressCallback = no_progress,
) -> None:
    """Convert a Megatron-core checkpoint of NVLM-D into the released layout.

    Args:
        source: the checkpoint directory with `latest_checkpointed_iteration.txt`, or one iteration
            of it. Any tensor and pipeline parallelism.
        hf_dir: where config.json, tokenizer and preprocessor files come from.
        output: a fresh directory; the caller makes its appearance atomic.

    Raises:
        NvlmError: a rank is missing, a tensor is missing, unknown or misshapen, ranks disagree on
            a replicated tensor, or a file asks for code that is not on the list.
    """
    config = NvlmConfig.from_directory(hf_dir)
    copy_companion_files(hf_dir, output)
    grid = _rank_grid(_iteration_directory(source))
    stages, shapes = _scan(grid, dropped_names(config))
    tensor_parallel = len(grid[0])
    vocab_share = shapes.get(rank_prefix(0) + WORD_EMBEDDINGS, (0,))[0]
    padded_vocab = max(vocab_share * tensor_parallel, config.language.vocab_size)
    table = megatron_table(config, tensor_parallel, padded_vocab)
    table.check_sources(shapes, where=str(source))
    _check_shapes(source, shapes, table.inverse().target_shapes(expected_tensors(config)))
    _logger.info("importing %s: tensor parallel %d, pipeline parallel %d", source, tensor_parallel, len(grid))
    with ShardedWriter(output, config, max_shard_bytes, progress) as writer:
        for stage in stages:
            _convert_stage(stage, table, writer)


def _convert_stage(stage: _Stage, table: RuleTable, writer: ShardedWriter) -> None:
    tensors: dict[str, Any] = {}
    for rank, path in enumerate(stage.files):
        tensors.update(_named(_load_model_state(path), rank, stage.first_layer))
    own_rules = [rule for rule in table.rules if rule.sources[0] in stage.names]
    for name, tensor in RuleTable(own_rules).convert(tensors.__getitem__):
        writer.write(name, tensor)


def _scan(grid: Sequence[Sequence[Path]], drops: Sequence[str]) -> tuple[list[_Stage], dict[str, Shape]]:
    """Open every file once for its names and shapes, and count the decoder layers by stage."""
    stages: list[_Stage] = []
    shapes: dict[str, Shape] = {}
    first_layer = 0
    for files in grid:
        names: dict[str, Shape] = {}
        next_layer = first_layer
        for rank, path in enumerate(files):
            named = _named(_load_model_state(path), rank, first_layer)
            for name, tensor in named.items():
                if matches_any(name, drops):
                    continue
                if name in shapes:
                    raise NvlmError(f"{path}: {name} is in an earlier pipeline stage, too")
                names[name] = tuple(getattr(tensor, "shape", ()))
                if layer := _LAYER.search(name):
                    next_layer = max(next_layer, int(layer[1]) + 1)
        shapes.update(names)
        stages.append(_Stage(tuple(files), first_layer, frozenset(names)))
        first_layer = next_layer
    return stages, shapes


def _load_model_state(path: Path) -> Mapping[str, Any]:
    """The `model` entry of one rank's file: tensors, and None or bytes for what is dropped."""
    content = load_pickle(path)
    state = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        interleaved = isinstance(content, Mapping) and "model0" in content
        raise NvlmError(
            f"{path} has no 'model' entry with the weights",
            hint="interleaved pipeline stages are not supported" if interleaved else None,
        )
    return state


def _named(state: Mapping[str, Any], rank: int, first_layer: int) -> dict[str, Any]:
    """The entries under the names of the weight table: with the rank, layers over all stages."""

    def absolute(match: re.Match[str]) -> str:
        return f"/language_model.decoder.layers.{int(match[1]) + first_layer}."

    return {_LAYER.sub(absolute, rank_prefix(rank) + name): tensor for name, tensor in state.items()}


def _check_shapes(source: Path, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    for name, shape in expected.items():
        if found[name] != shape:
            raise NvlmError(
                f"{source}: {name} has the shape {list(found[name])}, but config.json gives {list(shape)}",
                hint="the config belongs to another model, or ranks of different runs are mixed",
            )


def _iteration_directory(source: Path) -> Path:
    """The directory that holds `mp_rank_*`: the latest iteration, or `source` itself."""
    if not source.is_dir():
        raise NvlmError(f"{source} is not a directory")
    if any(source.glob("mp_rank_*")):
        return source
    latest = source / ITERATION_FILE
    if not latest.exists():
        raise NvlmError(
            f"{source} holds neither {ITERATION_FILE} nor mp_rank_* directories",
            hint="point at the checkpoint that Megatron wrote with --ckpt-format torch",
        )
    iteration = latest.read_text(encoding="utf-8").strip()
    name = f"iter_{int(iteration):07}" if iteration.isdecimal() else iteration
    directory = source / name
    if Path(name).name != name or not any(directory.glob("mp_rank_*")):
        raise NvlmError(
            f"{latest} names {iteration!r}, but {directory} holds no mp_rank_* directories",
            hint="distributed formats (torch_dist) must be converted with --ckpt-format torch first",
        )
    return directory


def _rank_grid(directory: Path) -> list[list[Path]]:
    """Files by pipeline stage, then tensor-parallel rank; every cell of the grid must be there."""
    cells: dict[tuple[int, int], Path] = {}
    for path in sorted(directory.glob("mp_rank_*")):
        match = _RANK_DIRECTORY.fullmatch(path.name)
        if match is None:
            raise NvlmError(
                f"{path} is not named mp_rank_TT or mp_rank_TT_PPP",
                hint="expert parallelism does not occur in NVLM",
            )
        cells[int(match[2] or 0), int(match[1])] = path / RANK_FILE
    stages = 1 + max(stage for stage, _ in cells)
    ranks = 1 + max(rank for _, rank in cells)
    for stage in range(stages):
        for rank in range(ranks):
            if (stage, rank) not in cells or not cells[stage, rank].exists():
                raise NvlmError(
                    f"{directory}: tensor-parallel rank {rank} of pipeline stage {stage} has no {RANK_FILE}",
                    hint=f"a run with {ranks} x {stages} ranks left {ranks * stages} files; copy all of them",
                )
    return [[cells[stage, rank] for rank in range(ranks)] for stage in range(stages)]
