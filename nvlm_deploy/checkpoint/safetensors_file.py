"""The safetensors file format: headers, and where each tensor's bytes lie.

A file is an 8-byte little-endian header length, a JSON header, and the tensors' bytes without
gaps. Files are read by offset and never mapped: pages of a mapping would count as this process's
memory for as long as the mapping lives.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nvlm_deploy.errors import NvlmError

RELEASED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
    torch.int8: "I8",
}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}

_LENGTH_BYTES = 8
# The reference implementation's own limit; a larger length means that the file is something else.
_MAX_HEADER_BYTES = 100_000_000
# Tensors are cast in pieces of this size, so that a cast does not hold a tensor twice.
_CHUNK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a shard; `offset` is where its bytes begin in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    shard: str
    offset: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What a shard says about itself; `raw` is the JSON header as written."""

    tensors: dict[str, TensorInfo]
    raw: bytes
    file_size: int


def read_header(path: Path) -> ShardHeader:
    """Read and check one file's header against the file's size.

    Raises:
        NvlmError: the file is missing, truncated or no safetensors file, or holds a dtype that neither
            released nor quantized checkpoints use.
    """
    try:
        with path.open("rb") as file:
            file_size = path.stat().st_size
            raw = _read_raw_header(path, file.read(_LENGTH_BYTES), file_size, file.read)
    except OSError as error:
        raise NvlmError(
            f"{path} cannot be read: {error.strerror}",
            hint="the checkpoint is incomplete; download or copy this file again",
        ) from None
    try:
        entries = json.loads(raw)
        if not isinstance(entries, dict):
            raise ValueError("the header is no JSON object")
    except ValueError as error:
        raise NvlmError(f"{path} is not a safetensors file: {error}") from None
    entries.pop("__metadata__", None)
    data_start = _LENGTH_BYTES + len(raw)
    tensors = {name: _parse_entry(path, name, entry, data_start) for name, entry in entries.items()}
    _check_layout(path, tensors, data_start, file_size)
    return ShardHeader(tensors, raw, file_size)


def _read_raw_header(path: Path, prefix: bytes, file_size: int, read: Callable[[int], bytes]) -> bytes:
    if len(prefix) < _LENGTH_BYTES:
        raise _truncated(path, file_size, _LENGTH_BYTES)
    (length,) = struct.unpack("<Q", prefix)
    if length > _MAX_HEADER_BYTES:
        raise NvlmError(f"{path} is not a safetensors file: it promises a header of {length:,} bytes")
    raw = read(length)
    if len(raw) < length:
        raise _truncated(path, file_size, _LENGTH_BYTES + length)
    return raw


def _truncated(path: Path, file_size: int, expected: int) -> NvlmError:
    return NvlmError(
        f"{path} is truncated: it has {file_size:,} bytes of at least {expected:,}",
        hint="the checkpoint is incomplete; download or copy this file again",
    )


def _parse_entry(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        dtype_name, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise NvlmError(f"{path}: the header entry of {name} is malformed: {entry!r}") from None
    if dtype_name not in _DTYPES:
        raise NvlmError(
            f"{path}: {name} has the dtype {dtype_name!r}; supported: {', '.join(_DTYPES)}",
        )
    info = TensorInfo(name, _DTYPES[dtype_name], shape, path.name, data_start + start)
    if stop - start != info.num_bytes:
        raise NvlmError(
            f"{path}: {name} takes {stop - start:,} bytes, "
            f"but {dtype_name} {list(shape)} needs {info.num_bytes:,}"
        )
    return info


def _check_layout(path: Path, tensors: Mapping[str, TensorInfo], data_start: int, file_size: int) -> None:
    """The tensors must fill the rest of the file without gap or overlap."""
    end = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.num_bytes)):
        if info.offset != end:
            raise NvlmError(f"{path}: {info.name} begins at byte {info.offset:,}, expected {end:,}")
        end += info.num_bytes
    if file_size < end:
        raise _truncated(path, file_size, end)
    if file_size > end:
        raise NvlmError(f"{path} has {file_size - end:,} bytes behind its last tensor")


def build_header(tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]]) -> bytes:
    """Return length and header of a file that holds the tensors in this order, 8-byte aligned."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in tensors:
        stop = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _LENGTH_BYTES)
    return struct.pack("<Q", len(raw)) + raw


def read_elements(
    path: Path, info: TensorInfo, start: int, stop: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Read the flat elements `[start, stop)` of one tensor, cast to `dtype` piece by piece.

    Returns:
        A 1-D tensor of its own memory. The peak is that tensor and one piece of 16 MiB.
    """
    out = torch.empty(stop - start, dtype=dtype or info.dtype, device="cpu")
    piece = _CHUNK_BYTES // info.dtype.itemsize
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(info.offset + start * info.dtype.itemsize)
            for first in range(0, len(out), piece):
                part = out[first : first + piece]
                raw = part if part.dtype == info.dtype else torch.empty_like(part, dtype=info.dtype)
                _read_into(path, info, file, raw)
                if raw is not part:
                    part.copy_(raw)
    except OSError as error:
        raise NvlmError(f"{path}: {info.name} cannot be read: {error.strerror}") from None
    return out


def _read_into(path: Path, info: TensorInfo, file: Any, raw: torch.Tensor) -> None:
    buffer = raw.view(torch.uint8).numpy().data
    while buffer:
        count = file.readinto(buffer)
        if not count:
            raise NvlmError(f"{path} ends inside {info.name}: the file was cut while it was in use")
        buffer = buffer[count:]


def write_elements(path: Path, info: TensorInfo, tensor: torch.Tensor) -> None:
    """Write one tensor to its place in a file that has its full size, cast piece by piece."""
    with path.open("r+b", buffering=0) as file:
        file.seek(info.offset)
        _write_tensor(file, tensor, info.dtype)


def write_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a file with `tensors`, from any device, and wait until it is on disk.

    The peak beside the tensors is one piece of 16 MiB.

    Raises:
        OSError: as the disk says it; the file is incomplete then.
    """
    # Wider dtypes first keep every tensor aligned to its own element size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header = build_header([(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in ordered])
    with path.open("wb", buffering=0) as file:
        _write_all(file, memoryview(header))
        for _, tensor in ordered:
            _write_tensor(file, tensor, tensor.dtype)
        os.fsync(file.fileno())


def _write_tensor(file: Any, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    flat = tensor.detach().reshape(-1)
    piece = _CHUNK_BYTES // dtype.itemsize
    for first in range(0, len(flat), piece):
        part = flat[first : first + piece].to("cpu", dtype).contiguous()
        _write_all(file, part.view(torch.uint8).numpy().data)


def _write_all(file: Any, buffer: memoryview) -> None:
    while buffer:
        buffer = buffer[file.write(buffer) :]
