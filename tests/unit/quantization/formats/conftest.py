"""Small floats in exact arithmetic, and modelopt as the reference where it is installed."""

from __future__ import annotations

import copy
import itertools
import warnings
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# (weight, name of modelopt's preset, INT4 group size) -> the exported tensors, the simulated weight
ModeloptExport = Callable[[Tensor, str, int], tuple[dict[str, Tensor], Tensor]]


@dataclass(frozen=True)
class MiniFloat:
    """A float format from its bit fields, in Fractions. Codes without the sign bit ascend."""

    exponent_bits: int
    mantissa_bits: int
    bias: int
    finite_codes: int

    def magnitude(self, code: int) -> Fraction:
        """Value of a code whose sign bit is not set."""
        exponent, mantissa = divmod(code, 2**self.mantissa_bits)
        fraction = Fraction(mantissa, 2**self.mantissa_bits)
        if exponent == 0:
            return fraction * Fraction(2) ** (1 - self.bias)
        return (1 + fraction) * Fraction(2) ** (exponent - self.bias)

    @cached_property
    def magnitudes(self) -> list[Fraction]:
        return [self.magnitude(code) for code in range(self.finite_codes)]

    @property
    def midpoints(self) -> list[Fraction]:
        values = self.magnitudes
        return [(a + b) / 2 for a, b in itertools.pairwise(values)]

    def nearest(self, value: Fraction) -> Fraction:
        """Nearest finite value, ties to the even code, saturating."""
        values = self.magnitudes
        size = abs(value)
        above = min(bisect_left(values, size), len(values) - 1)
        candidates = range(max(0, above - 1), above + 1)
        code = min(candidates, key=lambda code: (abs(values[code] - size), code % 2))
        return values[code] if value >= 0 else -values[code]


E4M3 = MiniFloat(exponent_bits=4, mantissa_bits=3, bias=7, finite_codes=127)
E2M1 = MiniFloat(exponent_bits=2, mantissa_bits=1, bias=1, finite_codes=8)


def exact(tensor: Tensor) -> list[Fraction]:
    """The numbers of a tensor without rounding."""
    return [Fraction(value) for value in tensor.double().flatten().tolist()]


@pytest.fixture(scope="session")
def modelopt_export() -> ModeloptExport:
    """Calibration by maxima and export of one nn.Linear, both modelopt's own."""
    with warnings.catch_warnings():
        # It warns about versions of other packages as soon as it is imported.
        warnings.simplefilter("ignore")
        mtq = pytest.importorskip("modelopt.torch.quantization")
        unified_export_hf = pytest.importorskip("modelopt.torch.export.unified_export_hf")

    def export(weight: Tensor, preset: str, group_size: int) -> tuple[dict[str, Tensor], Tensor]:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        linear.weight.data = weight.clone()
        model = nn.Sequential(linear)
        inputs = torch.randn(8, weight.shape[1], dtype=weight.dtype)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            mtq.quantize(model, _config(getattr(mtq, preset), group_size), lambda model: model(inputs))
            quantizer: Any = linear.weight_quantizer
            # Its simulation of NVFP4 needs a GPU.
            simulated = weight if preset.startswith("NVFP4") else quantizer(linear.weight)
            unified_export_hf._export_quantized_weight(linear, weight.dtype)
        return dict(linear.state_dict()), simulated.detach()

    return export


def _config(preset: dict[str, Any], group_size: int) -> dict[str, Any]:
    config = copy.deepcopy(preset) | {"algorithm": "max"}
    for entry in config["quant_cfg"]:
        forms = entry.get("cfg", [])
        for form in forms if isinstance(forms, list) else [forms]:
            if form.get("num_bits") == 4:
                form["block_sizes"][-1] = group_size
    return config
