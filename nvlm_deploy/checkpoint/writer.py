"""Writing the released layout: numbered shards, an index, and each tensor in its released dtype."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch

from nvlm_deploy.checkpoint.safetensors_file import TensorInfo, build_header, write_elements
from nvlm_deploy.checkpoint.shards import INDEX_NAME
from nvlm_deploy.checkpoint.weight_table import (
    ReleasedTensor,
    model_shapes,
    model_table,
    released_tensors,
)
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError, did_you_mean
from nvlm_deploy.progress import ProgressCallback, no_progress

# About the size of the released shards, which hold two decoder layers each.
DEFAULT_SHARD_BYTES = 4_000_000_000

# All that a checkpoint holds besides weights. The released one keeps its tokenizer as vocab.json
# and merges.txt, and modelling code that `auto_map` in its config.json points at.
_COMPANION_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


class ShardedWriter:
    """Writes a checkpoint's tensors in any order; the peak is one tensor and a piece of 16 MiB.

    Names, shapes, dtypes and shards follow from the config, so every file gets its header and its
    full size first and tensors are written in place. Leaving the `with` block writes the index,
    unless a tensor is missing or an exception passes. The caller provides a fresh directory and
    makes its appearance atomic.

    Raises:
        NvlmError: a tensor is unknown, misshapen, written twice or missing at the end; the disk is
            full.
    """

    def __init__(
        self,
        directory: Path,
        config: NvlmConfig,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
        progress: ProgressCallback = no_progress,
    ) -> None:
        self.directory, self._progress = directory, progress
        shards = _plan_shards(released_tensors(config), max_shard_bytes)
        self._places: dict[str, TensorInfo] = {}
        self._written: set[str] = set()
        with _disk_errors(directory):
            _require_space(directory, sum(_num_bytes(tensor) for shard in shards for tensor in shard))
            for number, shard in enumerate(shards, start=1):
                self._create(f"model-{number:05}-of-{len(shards):05}.safetensors", shard)

    def _create(self, file_name: str, tensors: Sequence[ReleasedTensor]) -> None:
        # Wider dtypes first keep every tensor aligned to its own element size.
        ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
        header = build_header([(tensor.name, tensor.dtype, tensor.shape) for tensor in ordered])
        offset = len(header)
        for tensor in ordered:
            info = TensorInfo(tensor.name, tensor.dtype, tensor.shape, file_name, offset)
            self._places[tensor.name] = info
            offset += info.num_bytes
        with (self.directory / file_name).open("xb") as file:
            file.write(header)
            file.truncate(offset)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor by its released name, cast to its released dtype."""
        place = self._places.get(name)
        if place is None:
            raise NvlmError(
                f"the released layout has no tensor {name}", hint=did_you_mean(name, self._places)
            )
        if tuple(tensor.shape) != place.shape:
            raise NvlmError(
                f"{name} has the shape {list(tensor.shape)}; the config gives {list(place.shape)}",
                hint="the weights belong to another config.json",
            )
        if name in self._written:
            raise NvlmError(f"{name} was written twice")
        with _disk_errors(self.directory):
            write_elements(self.directory / place.shard, place, tensor)
        self._written.add(name)
        self._progress("tensors", len(self._written), len(self._places))

    def close(self) -> None:
        """Write the index. Raises if a tensor was not written."""
        missing = [name for name in self._places if name not in self._written]
        if missing:
            raise NvlmError(f"{len(missing)} tensors were never written, the first is {missing[0]}")
        total = sum(place.num_bytes for place in self._places.values())
        weight_map = {name: self._places[name].shard for name in sorted(self._places)}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        with _disk_errors(self.directory):
            (self.directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def __enter__(self) -> ShardedWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()


def save_model(
    state: Mapping[str, torch.Tensor],
    config: NvlmConfig,
    directory: Path,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a model's parameters as a checkpoint in the released layout.

    Args:
        state: parameters by the names of `nvlm_deploy.models`, any floating dtype. The vision
            attention is padded with zero heads.
        directory: a fresh directory; config.json and tokenizer files are the caller's.
    """
    where = "the model's state"
    table = model_table(config).inverse()
    table.check_sources(state, where)
    for name, shape in model_shapes(config).items():
        if tuple(state[name].shape) != shape:
            raise NvlmError(
                f"{where}: {name} has the shape {list(state[name].shape)}, expected {list(shape)}"
            )
    with ShardedWriter(directory, config, max_shard_bytes) as writer:
        for name, tensor in table.convert(lambda name: state[name].detach()):
            writer.write(name, tensor)


def copy_companion_files(source: Path, output: Path) -> None:
    """Copy config.json, tokenizer, preprocessor and modelling files from one checkpoint directory.

    Raises:
        NvlmError: config.json or every form of the tokenizer is missing.
    """
    if not any((source / name).exists() for name in _TOKENIZER_FILES):
        raise NvlmError(
            f"{source} has no tokenizer",
            hint="it needs one of " + ", ".join(_TOKENIZER_FILES) + ", as in the released checkpoint",
        )
    if not (source / "config.json").exists():
        raise NvlmError(f"{source / 'config.json'} does not exist")
    present = [source / name for name in _COMPANION_FILES if (source / name).exists()]
    with _disk_errors(output):
        for path in (source / "config.json", *present, *sorted(source.glob("*.py"))):
            shutil.copyfile(path, output / path.name)


def _plan_shards(tensors: Sequence[ReleasedTensor], max_shard_bytes: int) -> list[list[ReleasedTensor]]:
    """Fill shards in canonical order. A tensor above the limit gets a shard of its own."""
    shards: list[list[ReleasedTensor]] = []
    free = 0
    for tensor in tensors:
        size = _num_bytes(tensor)
        if not shards or size > free:
            shards.append([])
            free = max_shard_bytes
        shards[-1].append(tensor)
        free -= size
    return shards


def _num_bytes(tensor: ReleasedTensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _require_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise NvlmError(
            f"{directory} has {free / 1e9:.1f} GB free; the checkpoint takes {needed / 1e9:.1f} GB",
            hint="free some space or choose an output on another disk",
        )


@contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """Turn failures of the disk into errors that say what to do."""
    try:
        yield
    except OSError as error:
        hint = "free some space or choose an output on another disk" if error.errno == errno.ENOSPC else None
        raise NvlmError(f"cannot write to {directory}: {error.strerror}", hint=hint) from error
