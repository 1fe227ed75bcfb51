"""The functions, parameters and modules of TensorRT-LLM 1.x that `nvlm_mllama.py` takes, in FP32.

Whatever the model class uses beyond them is an error; see `torch_layers.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Any

import torch

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Tensor:
    """A value of the network."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data
        self.dtype = "float32"

    def cast(self, dtype: str) -> Tensor:
        assert dtype in DTYPES
        return Tensor(self.data.float())

    def __add__(self, other: Tensor) -> Tensor:
        return Tensor(self.data + other.data)

    def __mul__(self, other: Tensor) -> Tensor:
        return Tensor(self.data * other.data)

    def __rsub__(self, other: float) -> Tensor:
        return Tensor(other - self.data)


def shape(
    input: Tensor, dim: int | None = None, cast_to_dtype: Any = None, clip_before_cast: Any = None
) -> Any:
    return list(input.data.shape) if dim is None else input.data.shape[dim]


def concat(inputs: Sequence[Any], dim: int = 0) -> Any:
    if all(isinstance(each, int) for each in inputs):
        return list(inputs)
    return Tensor(torch.cat([each.data for each in inputs], dim))


def slice(
    input: Tensor, starts: Any, sizes: Any, strides: Any = None, mode: Any = None, fill_value: Any = None
) -> Tensor:
    data = input.data
    for dim, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        data = data.narrow(dim, start, size)
    return Tensor(data)


def tanh(input: Tensor) -> Tensor:
    return Tensor(input.data.tanh())


class Conditional:
    def __init__(self, condition: Tensor) -> None:
        self.condition = bool(condition.data)

    def add_input(self, input: Tensor) -> Tensor:
        return input

    def add_output(self, true_value: Tensor, false_value: Tensor) -> Tensor:
        return true_value if self.condition else false_value


class PositionEmbeddingType(Enum):
    learned_absolute = auto()
    rope_gpt_neox = auto()


class AttentionMaskType(Enum):
    causal = auto()


class Parameter:
    """A weight; takes no other shape and no other dtype."""

    def __init__(self, value: Any = None, shape: Any = None, dtype: Any = None) -> None:
        assert value is None
        self.shape, self.dtype, self._value = tuple(shape), DTYPES[dtype], torch.empty(0)

    @property
    def value(self) -> Tensor:
        assert tuple(self._value.shape) == self.shape
        return Tensor(self._value.float())

    @value.setter
    def value(self, v: torch.Tensor) -> None:
        assert (tuple(v.shape), v.dtype) == (self.shape, self.dtype)
        self._value = v


class Module:
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.named_parameters(f"{prefix}{name}.")


class ModuleList(Module):
    def __init__(self, modules: Sequence[Module]) -> None:
        vars(self).update({str(number): module for number, module in enumerate(modules)})

    def __iter__(self) -> Iterator[Any]:
        return iter(list(vars(self).values()))
