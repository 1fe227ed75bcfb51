"""Write a model as `NAME.onnx` and `NAME.onnx.data`, one piece of one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO

import onnx_ir as ir

from nvlm_deploy.export.weights import StreamedTensor

# Called after every piece: name of the tensor, bytes written so far, bytes of the whole data file.
Progress = Callable[[str, int, int], None]

# Smaller tensors stay inside the graph, where the runtime's optimizer sees shapes and scalars.
_MIN_EXTERNAL_BYTES = 1024
_PAGE = 4096
_CACHE_LINE = 64


def write_model(model: ir.Model, path: Path, progress: Progress | None = None) -> None:
    """Write `model` to `path` and its weights to `path` + `.data`; the model then refers to that file.

    Tensors with the same bytes (an `lm_head` tied to the embedding) are written once. Large tensors
    begin on a page of their own, so that they can be mapped.

    Raises:
        NvlmError: a weight cannot be stored as planned.
    """
    data_path = path.with_name(path.name + ".data")
    with data_path.open("wb") as file:
        _DataFile(model, data_path.name, file, progress or _silent).write()
    ir.save(model, path)


class _DataFile:
    """Writes the initializers of one model and replaces them by references into the file."""

    def __init__(self, model: ir.Model, location: str, file: IO[bytes], progress: Progress) -> None:
        self.location, self.file, self.progress = location, file, progress
        self.values = [value for value in model.graph.initializers.values() if _is_external(value)]
        self.offsets = self._plan_offsets()
        self.written = 0

    def write(self) -> None:
        done: set[int] = set()
        for value, offset in zip(self.values, self.offsets, strict=True):
            tensor = value.const_value
            assert tensor is not None
            if offset not in done:
                done.add(offset)
                self._write_tensor(value.name or "", tensor, offset)
            value.const_value = ir.ExternalTensor(
                self.location,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
            )

    def _plan_offsets(self) -> list[int]:
        """Return each tensor's offset; tensors with equal keys get the same one."""
        offsets: dict[object, int] = {}
        end, result = 0, []
        for value in self.values:
            tensor = value.const_value
            assert tensor is not None
            key = tensor.key if isinstance(tensor, StreamedTensor) else id(tensor)
            if key not in offsets:
                boundary = _PAGE if tensor.nbytes >= _PAGE else _CACHE_LINE
                offsets[key] = -(-end // boundary) * boundary
                end = offsets[key] + tensor.nbytes
            result.append(offsets[key])
        self.total = end
        return result

    def _write_tensor(self, name: str, tensor: ir.TensorProtocol, offset: int) -> None:
        self._write(name, bytes(offset - self.written))
        if isinstance(tensor, StreamedTensor):
            for chunk in tensor.byte_chunks():
                self._write(name, chunk.data)
        else:
            self._write(name, tensor.tobytes())
        assert self.written == offset + tensor.nbytes, f"{name}: bytes do not match the declared shape"

    def _write(self, name: str, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.written += len(data)
        self.progress(name, self.written, self.total)


def _is_external(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes >= _MIN_EXTERNAL_BYTES


def _silent(name: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
