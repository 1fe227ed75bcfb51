"""A second reader of quantized checkpoints: slow, plain, and written from the format's description alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .conftest import stored_tensors

Float64 = npt.NDArray[np.float64]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def _e4m3_table() -> Float64:
    """All 256 codes of e4m3fn: sign, four bits of exponent with bias 7, three of mantissa; no infinities."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    values[(codes & 127) == 127] = np.nan
    return np.where(codes >= 128, -values, values)


E4M3 = _e4m3_table()


def to_e4m3(x: Float64) -> Float64:
    """Nearest e4m3 number, ties to the even code, saturating."""
    grid = E4M3[:127]
    size = np.minimum(np.abs(x), grid[-1])
    above = np.clip(np.searchsorted(grid, size), 1, len(grid) - 1)
    low, high = grid[above - 1], grid[above]
    middle = (low + high) / 2
    up = (size > middle) | ((size == middle) & (above % 2 == 0))
    return np.sign(x) * np.where(up, high, low)


def to_e2m1(x: Float64) -> Float64:
    """Nearest e2m1 number, ties to the even code, saturating."""
    distance = np.abs(np.abs(x)[..., None] - E2M1[:8])
    # Among two equally near the even code wins.
    distance[..., 1::2] += 1e-12
    return np.sign(x) * E2M1[:8][distance.argmin(-1)]


class Stored:
    """One quantized checkpoint: what its codes stand for, and what its inputs go through, in float64."""

    def __init__(self, directory: Path) -> None:
        self.tensors = stored_tensors(directory)
        self.config = json.loads((directory / "hf_quant_config.json").read_text())["quantization"]

    def modules(self) -> list[str]:
        """Released names of the quantized modules."""
        end = ".weight_scale"
        return [name.removesuffix(end) for name in self.tensors if name.endswith(end)]

    def algorithm(self, module: str) -> tuple[str, int]:
        """ModelOpt's name of the format of a module, and its group size."""
        entry = self.config
        if entry["quant_algo"] == "MIXED_PRECISION":
            entry = entry["quantized_layers"][module]
        return entry["quant_algo"], entry.get("group_size", 0)

    def _float(self, name: str) -> Float64:
        return self.tensors[name].double().numpy()

    def weight(self, module: str) -> Float64:
        """What the codes stand for, [N, K]."""
        algorithm, group = self.algorithm(module)
        codes = self.tensors[f"{module}.weight"]
        if algorithm == "FP8":
            return E4M3[codes.view(torch.uint8).numpy()] * self._float(f"{module}.weight_scale")
        if algorithm in ("W8A16", "W8A8_SQ_PER_CHANNEL"):
            return codes.double().numpy() * self._float(f"{module}.weight_scale")[:, None]
        nibbles = codes.numpy()
        if algorithm == "NVFP4":
            pairs = np.stack([nibbles & 15, nibbles >> 4], axis=-1)
            values = E2M1[pairs.reshape(len(nibbles), -1)]
            scale = E4M3[self.tensors[f"{module}.weight_scale"].view(torch.uint8).numpy()]
            return values * np.repeat(scale, group, axis=1) * self._float(f"{module}.weight_scale_2")
        rows = np.empty((2 * len(nibbles), nibbles.shape[1]))
        rows[0::2], rows[1::2] = nibbles & 15, nibbles >> 4
        rows[rows >= 8] -= 16
        values = rows * np.repeat(self._float(f"{module}.weight_scale"), group, axis=1)
        if algorithm == "W4A8_AWQ":
            # Kernels divide FP32 numbers, and where the quotient is rounded up to a tie it matters.
            scale_2 = self.tensors[f"{module}.weight_scale_2"].numpy()
            values = to_e4m3((values.astype(np.float32) / scale_2).astype(np.float64)) * scale_2
        return values

    def pre_quant_scale(self, module: str) -> Float64:
        """What inputs are multiplied with first."""
        name = f"{module}.pre_quant_scale"
        return self._float(name) if name in self.tensors else np.ones(1)

    def through_input(self, module: str, x: Float64) -> Float64:
        """What the inputs of a module become on their way into the product."""
        algorithm, _ = self.algorithm(module)
        x = x * self.pre_quant_scale(module)
        if algorithm in ("W8A16", "W4A16_AWQ"):
            return x
        scale = self._float(f"{module}.input_scale")
        if algorithm in ("FP8", "W4A8_AWQ"):
            return to_e4m3(x / scale) * scale
        if algorithm == "W8A8_SQ_PER_CHANNEL":
            return np.clip(np.rint(x / scale), -128, 127) * scale
        blocks = x.reshape(*x.shape[:-1], -1, 16)
        step = to_e4m3(np.abs(blocks).max(-1) / (6 * scale))[..., None] * scale
        quotient = np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0)
        return (to_e2m1(quotient) * step).reshape(x.shape)


def released_to_model(module: str) -> tuple[str, ...]:
    """Names of `nvlm_deploy.models` for a released module with a matrix."""
    renamed = {
        "attn.proj": "attention.out_proj",
        "self_attn.": "attention.",
        "vision_model.encoder.": "vision.",
        "mlp1.1": "projector.fc1",
        "mlp1.3": "projector.fc2",
        "language_model.lm_head": "language.lm_head",
        "language_model.model.": "language.",
    }
    name = module
    for old, new in renamed.items():
        name = name.replace(old, new)
    if name.endswith("attn.qkv"):
        return tuple(name.replace("attn.qkv", f"attention.{part}_proj") for part in "qkv")
    return (name,)


def model_weight(stored: Stored, module: str, target: str, shape: tuple[int, int]) -> Tensor:
    """The part of a module's weight that the model calls `target`, without dummy heads, float64 [N, K]."""
    weight = torch.from_numpy(stored.weight(module))
    names = released_to_model(module)
    part = weight.chunk(len(names))[names.index(target)]
    return part[: shape[0], : shape[1]]
