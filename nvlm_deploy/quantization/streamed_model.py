"""A model of which only what computes right now is in memory; the rest is on the meta device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.models import meta_model


class StreamedModel:
    """The reference model, with the parameters of one step at a time, FP32."""

    def __init__(self, weights: ModelWeights, device: torch.device) -> None:
        self.weights, self.device = weights, device
        self.model = meta_model(weights.reader.config).eval().requires_grad_(False)

    def parameters_of(self, prefix: str) -> tuple[str, ...]:
        """Names of the parameters of one submodule."""
        return tuple(name for name in self.weights.names() if name.startswith(prefix + "."))

    @contextmanager
    def loaded(self, names: Iterable[str]) -> Iterator[None]:
        """Hold the named parameters in memory inside the block."""
        names = tuple(names)
        try:
            for name in names:
                self._set(name, self.weights.read(name, torch.float32).to(self.device))
            yield
        finally:
            for name in names:
                self._set(name, torch.empty(self.weights.shape(name), device="meta"))

    def _set(self, name: str, value: torch.Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        setattr(self.model.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))
