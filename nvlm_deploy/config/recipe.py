"""Recipes: how an engine's numbers are stored (`quantization/*.yaml`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

WeightType = Literal["fp32", "fp16", "int8", "int4"]
ActivationType = Literal["fp32", "int8"]
INTEGER_TYPES: tuple[WeightType, ...] = ("int8", "int4")
_MIN_GROUP = 16


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WeightFormat(_Section):
    """Storage of one part's matrices.

    Integers have one FP16 scale (and, if not symmetric, one zero point) per row and `group_size`
    consecutive input features. `activations` is what the matrix is multiplied with: `int8` quantizes
    the activations on the fly, group by group, which CPUs multiply several times faster than FP32.
    """

    format: WeightType
    group_size: int | None = Field(default=None, description="input features per scale; integers only")
    symmetric: bool = Field(default=True, description="false: each group has its own zero point")
    activations: ActivationType = "fp32"

    @model_validator(mode="after")
    def _check(self) -> WeightFormat:
        if self.format in INTEGER_TYPES:
            size = self.group_size
            if size is None:
                raise ValueError(f"{self.format} needs a group_size")
            if size < _MIN_GROUP or size & (size - 1):
                raise ValueError(f"group_size {size} is no power of two of at least {_MIN_GROUP}")
        elif self.group_size is not None or not self.symmetric or self.activations != "fp32":
            raise ValueError(f"group_size, symmetric and activations are for integers, not for {self.format}")
        return self


class PartFormats(_Section):
    """One format for the matrices of every part of the model; none has a default."""

    vision: WeightFormat
    projector: WeightFormat
    language: WeightFormat
    lm_head: WeightFormat
    embedding: WeightFormat


class KeepRule(_Section):
    """Matrices that are never quantized: a glob over the model's parameter names, and why."""

    match: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    format: Literal["fp32", "fp16"] = "fp16"


class Recipe(_Section):
    """How numbers are stored. Norms, biases and the other small tensors always stay FP32."""

    name: str = Field(min_length=1)
    description: str = Field(min_length=1)
    runs_on: str = Field(min_length=1)
    algorithm: Literal["none", "rtn"] = Field(description="rtn: round to nearest, no calibration")
    weights: PartFormats
    kv_cache: Literal["fp32", "fp16"]
    keep: list[KeepRule]

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        parts = [getattr(self.weights, part) for part in PartFormats.model_fields]
        quantized = any(part.format in INTEGER_TYPES for part in parts)
        if quantized != (self.algorithm != "none"):
            kind = "integers" if quantized else "no integers"
            raise ValueError(f"algorithm is {self.algorithm}, and the weights have {kind}")
        return self
