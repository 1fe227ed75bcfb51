"""The tensors of a TensorRT-LLM checkpoint, written rule by rule into one file for each rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from nvlm_deploy.checkpoint.rules import Rule, RuleTable
from nvlm_deploy.checkpoint.safetensors_file import RELEASED_DTYPES, TensorInfo, build_header, write_elements
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.export.tensorrt_llm.source import LanguageSource
from nvlm_deploy.export.tensorrt_llm.table import Layout, rank_and_name, stored_dtype
from nvlm_deploy.quantization.formats.codec import absolute_max

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class RankFiles:
    """Writes tensors to their places in `rankN.safetensors`; the peak is one rule and a piece of 16 MiB.

    Names, shapes and dtypes follow from the table, so every file gets its header and its full size first.
    A file that is there already, from a run that was stopped, is written on.
    """

    def __init__(self, source: LanguageSource, layout: Layout, dtype: torch.dtype, where: str) -> None:
        """`where` names the checkpoint in errors. Writes nothing yet.

        Raises:
            NvlmError: a tensor of the checkpoint has no place in the table, or the table wants one more.
        """
        self.source, self.dtype = source, dtype
        table = layout.table()
        table.check_sources(source.names(), where)
        self._files = _files(table, source, dtype)

    @cached_property
    def places(self) -> dict[str, TensorInfo]:
        """Where every tensor lies, by rank and name."""
        return {target: info for _, _, infos in self._files for target, info in infos.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self._files)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file by name."""
        return {next(iter(infos.values())).shard: size for _, size, infos in self._files}

    def create(self, directory: Path) -> None:
        """Make all files in `directory` with headers and full sizes, if they are not there."""
        for header, size, infos in self._files:
            path = directory / next(iter(infos.values())).shard
            if not path.exists() or path.stat().st_size != size:
                with path.open("wb") as file:
                    file.write(header)
                    file.truncate(size)

    def write(self, directory: Path, rules: tuple[Rule, ...]) -> Iterator[int]:
        """Write what `rules` make, and wait until it is on disk; yield the bytes after every tensor.

        Raises:
            NvlmError: a number is beyond the range of the model's dtype, or tensors differ that must not.
            OSError: as the disk says it.
        """
        touched = set()
        for target, tensor in RuleTable(rules).convert(self.source.read):
            place = self.places[target]
            _check_range(target, tensor, place.dtype)
            write_elements(directory / place.shard, place, tensor)
            touched.add(place.shard)
            yield place.num_bytes
        for shard in touched:
            _sync(directory / shard)


_File = tuple[bytes, int, dict[str, TensorInfo]]


def _files(table: RuleTable, source: LanguageSource, model_dtype: torch.dtype) -> tuple[_File, ...]:
    """Header, size, and places of the tensors of every rank's file."""
    by_rank: dict[int, list[tuple[str, torch.dtype, tuple[int, ...]]]] = {}
    for target, tensor in table.convert(source.empty):
        rank, name = rank_and_name(target)
        dtype = stored_dtype(name, tensor.dtype, model_dtype)
        by_rank.setdefault(rank, []).append((target, dtype, tuple(tensor.shape)))
    return tuple(_file(rank, by_rank[rank]) for rank in sorted(by_rank))


def _file(rank: int, tensors: list[tuple[str, torch.dtype, tuple[int, ...]]]) -> _File:
    # Wider dtypes first keep every tensor aligned to its own element size.
    ordered = sorted(tensors, key=lambda tensor: -tensor[1].itemsize)
    header = build_header([(rank_and_name(target)[1], dtype, shape) for target, dtype, shape in ordered])
    offset, infos = len(header), {}
    for target, dtype, shape in ordered:
        info = TensorInfo(rank_and_name(target)[1], dtype, shape, rank_file(rank), offset)
        infos[target] = info
        offset += info.num_bytes
    return header, offset, infos


def rank_file(rank: int) -> str:
    """File name of one rank's tensors."""
    return f"rank{rank}.safetensors"


def _check_range(target: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype not in RELEASED_DTYPES or dtype == tensor.dtype:
        return
    largest = float(absolute_max(tensor))
    if not largest <= torch.finfo(dtype).max:
        raise NvlmError(
            f"{target} holds {largest:g}, beyond the range of {str(dtype).removeprefix('torch.')}",
            hint="use --dtype bfloat16, which has the range of FP32",
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
