"""The tensors of a directory of safetensors shards: where each one is, and reading any part of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from nvlm_deploy.checkpoint.safetensors_file import ShardHeader, TensorInfo, read_elements, read_header
from nvlm_deploy.errors import NvlmError, did_you_mean

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# How much of each tensor goes into a fingerprint.
_SAMPLE_BYTES = 4096


class ShardSet:
    """All tensors of a directory by name, whatever they are.

    Opening reads the index and the shards' headers, no tensor data; index and shards must agree. Reading
    opens the shard anew each time and holds one tensor.

    Raises:
        NvlmError: names the file or tensor that is missing, truncated or misplaced.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        index = _read_index(directory)
        shards = [SINGLE_NAME] if index is None else sorted(set(index.values()))
        self._headers = {shard: _read_shard(directory, shard) for shard in shards}
        self.infos = _locate(directory, index, self._headers)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place on disk of one tensor."""
        if name not in self.infos:
            raise NvlmError(f"{self.directory} has no tensor {name}", hint=did_you_mean(name, self.infos))
        return self.infos[name]

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one tensor, contiguous, in the dtype on disk or cast to `dtype`."""
        info = self.info(name)
        return self.read_elements(name, 0, info.num_elements, dtype).view(info.shape)

    def read_elements(
        self, name: str, start: int, stop: int, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Read the elements `[start, stop)` of the flattened tensor, 1-D."""
        info = self.info(name)
        if not 0 <= start <= stop <= info.num_elements:
            raise IndexError(f"{name} has {info.num_elements} elements, not [{start}, {stop})")
        return read_elements(self.directory / info.shard, info, start, stop, dtype)

    def fingerprint(self) -> str:
        """SHA-256 over config, index, headers, file sizes, and a sample of every tensor's bytes.

        The sample is up to 4 KiB from the middle, so that a retrained checkpoint of the same shape
        differs without 177 GB being read.
        """
        digest = hashlib.sha256()
        for name in ("config.json", INDEX_NAME):
            path = self.directory / name
            digest.update(path.read_bytes() if path.exists() else b"")
        for shard, header in self._headers.items():
            digest.update(f"{shard}:{header.file_size}".encode())
            digest.update(header.raw)
        for name, info in self.infos.items():
            count = min(info.num_elements, _SAMPLE_BYTES // info.dtype.itemsize)
            start = (info.num_elements - count) // 2
            sample = self.read_elements(name, start, start + count)
            digest.update(sample.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _read_index(directory: Path) -> dict[str, str] | None:
    """The weight map of the index, or None for a checkpoint of one unnumbered file."""
    path = directory / INDEX_NAME
    if not path.exists():
        if (directory / SINGLE_NAME).exists():
            return None
        raise NvlmError(
            f"{directory} has neither {INDEX_NAME} nor {SINGLE_NAME}",
            hint="weights must be safetensors; Megatron checkpoints go through nvlm-build import-megatron",
        )
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(weight_map, dict) or not weight_map:
            raise TypeError
    except (KeyError, TypeError):
        raise NvlmError(f"{path} has no weight_map that leads from tensors to files") from None
    except (OSError, ValueError) as error:
        raise NvlmError(f"{path} cannot be read: {error}") from None
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise NvlmError(f"{path}: {name} is in {shard!r}, which is no file name in this directory")
    return weight_map


def _read_shard(directory: Path, shard: str) -> ShardHeader:
    path = directory / shard
    if not path.exists():
        raise NvlmError(
            f"the shard {path} is missing",
            hint="the checkpoint is incomplete; download or copy this file",
        )
    return read_header(path)


def _locate(
    directory: Path, index: dict[str, str] | None, headers: dict[str, ShardHeader]
) -> dict[str, TensorInfo]:
    """All tensors by name; index and shards must agree on where each one is."""
    found: dict[str, TensorInfo] = {}
    for shard, header in headers.items():
        for name, info in header.tensors.items():
            if index is not None and index.get(name) != shard:
                place = f"puts it in {index[name]}" if name in index else "does not name it"
                raise NvlmError(f"{directory / shard} holds {name}, but {INDEX_NAME} {place}")
            found[name] = info
    for name, shard in (index or {}).items():
        if name not in found:
            raise NvlmError(
                f"{INDEX_NAME} puts {name} in {directory / shard}, which does not hold it",
                hint=did_you_mean(name, headers[shard].tensors),
            )
    return found
