"""Compute a piece of the reference model as an engine does in 16 bits: every result is rounded.

Products are summed and norms computed in FP32, as in TensorRT's kernels; weights are rounded, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from nvlm_deploy.export.dialect import FloatType
from nvlm_deploy.models.norm import RMSNorm

_DTYPES: dict[FloatType, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_MOVES = (torch.ops.aten.clone, torch.ops.aten.cat, torch.ops.aten._unsafe_view)
_NORMS = (RMSNorm, nn.LayerNorm)


@dataclass(frozen=True, slots=True)
class Computed:
    """A result, float32, and the largest magnitude on the way to it."""

    y: Tensor
    peak: float


def compute(
    block: Callable[[Tensor], Tensor], modules: Sequence[nn.Module], x: Tensor, floats: FloatType
) -> Computed:
    """Run `block` on `x`, rounding every result to `floats`; `modules` are what it is made of.

    Magnitudes beyond the type become infinite, and the result with them.
    """
    observer = _Rounding(_DTYPES[floats])
    with (
        torch.no_grad(),
        _rounded_parameters(modules, _DTYPES[floats]),
        observer.around_norms(modules),
        # One operator for all of attention would hide the scores.
        sdpa_kernel(SDPBackend.MATH),
        observer,
    ):
        y = block(x)
    return Computed(y, observer.peak)


class _Rounding(TorchDispatchMode):
    """Sees every result, keeps the largest magnitude, and rounds."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.peak = dtype, 0.0
        self._inside_norm = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._inside_norm or not isinstance(out, Tensor) or out.dtype != torch.float32:
            return out
        # What is only moved has been seen when it was made.
        moved = func._schema.returns[0].alias_info is not None or func.overloadpacket in _MOVES
        return out if moved else self._seen(out)

    @contextmanager
    def around_norms(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Look at the results of norms alone, and not inside."""

        def enter(module: nn.Module, args: object) -> None:
            self._inside_norm = True

        def leave(module: nn.Module, args: object, y: Tensor) -> Tensor:
            rounded = self._seen(y)
            self._inside_norm = False
            return rounded

        with ExitStack() as stack:
            for module in modules:
                for each in module.modules():
                    if isinstance(each, _NORMS):
                        stack.callback(each.register_forward_pre_hook(enter).remove)
                        stack.callback(each.register_forward_hook(leave).remove)
            yield

    def _seen(self, out: Tensor) -> Tensor:
        if out.numel():
            self.peak = max(self.peak, float(out.abs().max()))
        return out if self.dtype == torch.float32 else out.to(self.dtype).float()


@contextmanager
def _rounded_parameters(modules: Sequence[nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """Hold the parameters as `dtype` does inside the block."""
    if dtype == torch.float32:
        yield
        return
    kept = [(parameter, parameter.data) for module in modules for parameter in module.parameters()]
    try:
        for parameter, values in kept:
            parameter.data = values.to(dtype).float()
        yield
    finally:
        for parameter, values in kept:
            parameter.data = values
