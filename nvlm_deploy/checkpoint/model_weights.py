"""The model's parameters, streamed from a checkpoint through the weight table."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.checkpoint.rules import Shape
from nvlm_deploy.checkpoint.weight_table import expected_tensors, model_table
from nvlm_deploy.errors import NvlmError, did_you_mean


@dataclass(frozen=True, slots=True)
class _View:
    """A parameter as a strided view of one tensor on disk; offset and strides count elements."""

    source: str
    offset: int
    shape: Shape
    stride: tuple[int, ...]


class ModelWeights:
    """Parameters by the names of `nvlm_deploy.models`, without dummy heads.

    Every parameter is a view of one released tensor, so any range of its rows is read without the
    rest. Nothing is cached: the peak is one tensor.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        self.reader = reader
        self._views: dict[str, _View] = {}
        shapes = expected_tensors(reader.config)
        for rule in model_table(reader.config).rules:
            (source,) = rule.sources
            on_disk = torch.empty(shapes[source], device="meta")
            for name, view in zip(rule.targets, rule.apply([on_disk]), strict=True):
                self._views[name] = _View(
                    source, int(view.storage_offset()), tuple(view.shape), view.stride()
                )

    def names(self) -> tuple[str, ...]:
        """Parameter names in the canonical order of the weight table."""
        return tuple(self._views)

    def shape(self, name: str) -> Shape:
        """Shape of one parameter."""
        return self._view(name).shape

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one parameter, contiguous, in the dtype on disk or cast to `dtype`."""
        return self.read_rows(name, 0, self._view(name).shape[0], dtype)

    def read_rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read rows `[start, stop)` of dimension 0 and nothing before or behind them."""
        view = self._view(name)
        if not 0 <= start < stop <= view.shape[0]:
            raise IndexError(f"{name} has {view.shape[0]} rows, not [{start}, {stop})")
        shape = (stop - start, *view.shape[1:])
        first = view.offset + start * view.stride[0]
        span = 1 + sum((size - 1) * step for size, step in zip(shape, view.stride, strict=True))
        flat = self.reader.read_elements(view.source, first, first + span, dtype)
        return flat.as_strided(shape, view.stride).contiguous()

    def verify_dummy_heads(self) -> None:
        """Check that slicing the dummy heads away is exact.

        A dummy head adds nothing if its value rows or its output columns are zero. The query and
        key rows do not matter then, and the released code never counts them in the QK norm.

        Raises:
            NvlmError: names the tensor of the first layer whose dummy heads carry weight.
        """
        vision = self.reader.config.vision
        width, padded = vision.hidden_size, vision.padded_hidden_size
        for layer in range(vision.num_layers):
            prefix = f"vision_model.encoder.layers.{layer}.attn."
            values = self.reader.read_rows(prefix + "qkv.weight", 2 * padded + width, 3 * padded)
            if values.any() and self.reader.read(prefix + "proj.weight")[:, width:].any():
                raise NvlmError(
                    f"{self.reader.directory}: the dummy heads of {prefix}qkv.weight are not zero",
                    hint="the seven heads behind the real ones must be zero, as in the released files",
                )

    def _view(self, name: str) -> _View:
        if name not in self._views:
            raise NvlmError(f"the model has no parameter {name}", hint=did_you_mean(name, self._views))
        return self._views[name]
