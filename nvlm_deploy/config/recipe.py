"""Recipes: how an engine's numbers are stored (`quantization/*.yaml`)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from nvlm_deploy.config.thresholds import VerifyThresholds, default_thresholds

WeightType = Literal["fp32", "fp16", "int8", "int4", "fp8", "nvfp4"]
ActivationType = Literal["fp32", "int8", "int8-static", "fp8", "nvfp4"]
CalibratedAlgorithm = Literal["max", "awq", "smoothquant", "gptq"]
EngineName = Literal["onnxruntime", "tensorrt_llm", "tensorrt", "tensorrt_rtx", "vllm"]

FLOAT_TYPES: tuple[WeightType, ...] = ("fp32", "fp16")
NVFP4_GROUP = 16
# Which activations a weight format can be multiplied with.
_ACTIVATIONS: dict[WeightType, tuple[ActivationType, ...]] = {
    "fp32": ("fp32",),
    "fp16": ("fp32",),
    "int8": ("fp32", "int8", "int8-static"),
    "int4": ("fp32", "int8", "fp8"),
    "fp8": ("fp32", "fp8"),
    "nvfp4": ("fp32", "nvfp4"),
}
# Scales of these are fixed when the checkpoint is quantized, from what the model was shown.
STATIC_ACTIVATIONS: tuple[ActivationType, ...] = ("int8-static", "fp8", "nvfp4")
_MIN_GROUP = 16
_BITS: dict[WeightType, int] = {"fp32": 32, "fp16": 16, "int8": 8, "fp8": 8, "int4": 4, "nvfp4": 4}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WeightFormat(_Section):
    """Storage of one part's matrices, and what they are multiplied with.

    `group_size`: consecutive input features that share a scale. INT4 has groups; INT8 has groups or, without
    a size, one scale per output channel; FP8 (e4m3) has one scale per matrix; NVFP4 has blocks of 16.
    `activations`: `fp32` leaves them as the engine computes; `int8` quantizes them on the fly, group by
    group, where an engine multiplies in integers faster (CPUs; GPU engines keep 16 bits); `int8-static` and
    `fp8` have one scale per matrix from calibration, `nvfp4` two levels of scales.
    `algorithm` is the recipe's unless a part has its own.
    """

    format: WeightType
    group_size: int | None = Field(default=None, description="input features per scale")
    symmetric: bool = Field(default=True, description="false: each group has its own zero point")
    activations: ActivationType = "fp32"
    algorithm: CalibratedAlgorithm | None = None

    @property
    def quantized(self) -> bool:
        """Whether the numbers are stored with scales."""
        return self.format not in FLOAT_TYPES

    @model_validator(mode="after")
    def _check(self) -> WeightFormat:
        self._check_group()
        if not self.symmetric and (self.format not in ("int8", "int4") or self.group_size is None):
            raise ValueError("symmetric: false is for integers in groups")
        allowed = _ACTIVATIONS[self.format]
        if self.activations not in allowed:
            raise ValueError(f"{self.format} weights take activations of {', '.join(allowed)}")
        if self.activations == "int8-static" and self.group_size is not None:
            raise ValueError("int8-static activations need one scale per output channel: no group_size")
        return self

    def _check_group(self) -> None:
        size = self.group_size
        if self.format == "int4" and size is None:
            raise ValueError("int4 needs a group_size")
        if size is None:
            return
        if self.format not in ("int8", "int4"):
            raise ValueError(f"group_size is for integers, not for {self.format}")
        if size < _MIN_GROUP or size & (size - 1):
            raise ValueError(f"group_size {size} is no power of two of at least {_MIN_GROUP}")


class PartFormats(_Section):
    """One format for the matrices of every part of the model; none has a default."""

    vision: WeightFormat
    projector: WeightFormat
    language: WeightFormat
    lm_head: WeightFormat
    embedding: WeightFormat

    def all(self) -> tuple[WeightFormat, ...]:
        """The formats of all parts."""
        return tuple(self.of(part) for part in type(self).model_fields)

    def of(self, part: str) -> WeightFormat:
        """The format of one part."""
        weights: WeightFormat = getattr(self, part)
        return weights


class LayerRule(WeightFormat):
    """Another format for some of the matrices: a glob over the model's parameter names, and why.

    The embedding is not among them: it is looked up and not multiplied with, and its format is its part's.
    """

    match: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class KeepRule(_Section):
    """Matrices that this recipe does not quantize: a glob over the model's parameter names, and why."""

    match: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    format: Literal["fp32", "fp16"] = "fp16"


class NeverRule(_Section):
    """Parameters that nobody should quantize, and why; a plan that would is refused.

    only: the models that have such parameters, if not all do: those with cross-attention, NVLM-X and NVLM-H.
    """

    match: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    only: Literal["cross_attention"] | None = None


class AwqSettings(_Section):
    """Activation-aware scaling (arXiv 2306.00978): `alpha` is searched in steps, then amax is clipped."""

    alpha_step: float = Field(default=0.1, gt=0, le=1)
    clip: bool = Field(default=True, description="search a smaller amax for every group")


class SmoothQuantSettings(_Section):
    """SmoothQuant (arXiv 2211.10438): how much of the activations' range moves into the weights."""

    alpha: float = Field(default=0.5, ge=0, le=1)


class GptqSettings(_Section):
    """GPTQ (arXiv 2210.17323): share of the Hessian's mean diagonal that is added to it, and block width."""

    damping: float = Field(default=0.01, gt=0, lt=1)
    block_size: int = Field(default=128, ge=16)


class Recipe(_Section):
    """How numbers are stored. Norms, biases and the other small tensors are never quantized.

    A matrix has the format of its part, unless a rule matches it: those of `keep` first, then those of
    `layers`, each in its order; the first one that matches wins.

    `rtn` rounds while an engine is written. The other algorithms make a quantized checkpoint first, from
    which engines are written; the embedding, which no calibration helps, is left to the engine there, too.
    """

    name: str = Field(min_length=1)
    description: str = Field(min_length=1)
    runs_on: str = Field(min_length=1)
    engines: list[EngineName] = Field(min_length=1, description="engines that take it")
    needs_sm: int | None = Field(default=None, description="oldest CUDA compute capability, 89 for 8.9")
    algorithm: Literal["none", "rtn"] | CalibratedAlgorithm
    awq: AwqSettings = AwqSettings()
    smoothquant: SmoothQuantSettings = SmoothQuantSettings()
    gptq: GptqSettings = GptqSettings()
    weights: PartFormats
    kv_cache: Literal["fp32", "fp16", "fp8"]
    keep: list[KeepRule] = []
    layers: list[LayerRule] = []
    never: list[NeverRule] = []
    verify: VerifyThresholds = Field(default_factory=dict, validate_default=True)

    @field_validator("verify", mode="before")
    @classmethod
    def _fill_thresholds(cls, stated: Any, info: ValidationInfo) -> Any:
        """Add the defaults of these weights' bits to what the recipe states."""
        if not isinstance(stated, dict):
            return stated
        weights = info.data.get("weights")
        if weights is None:  # refused already; that is the error to report
            return {**default_thresholds(16, 16), **stated}
        decoder = min(_BITS[part.format] for part in (weights.language, weights.lm_head, weights.embedding))
        vision = min(_BITS[part.format] for part in (weights.vision, weights.projector))
        return {**default_thresholds(vision, decoder), **stated}

    @property
    def makes_checkpoint(self) -> bool:
        """Whether a quantized checkpoint comes before the engine."""
        return self.algorithm not in ("none", "rtn")

    @property
    def needs_calibration(self) -> bool:
        """Whether the model must be shown data."""
        formats = [each for each in self._formats() if each.quantized]
        static = any(each.activations in STATIC_ACTIVATIONS for each in formats)
        searched = any((each.algorithm or self.algorithm) not in ("rtn", "max") for each in formats)
        return static or searched or self.kv_cache == "fp8"

    def _formats(self) -> tuple[WeightFormat, ...]:
        """Every format that the recipe names: those of the parts and those of the rules."""
        return (*self.weights.all(), *self.layers)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        quantized = any(each.quantized for each in self._formats())
        if quantized != (self.algorithm != "none"):
            kind = "quantized" if quantized else "not quantized"
            raise ValueError(f"algorithm is {self.algorithm}, and the weights are {kind}")
        for part in self.weights.all():
            self._check_part(part)
        for rule in self.layers:
            try:
                self._check_part(rule)
            except ValueError as error:
                raise ValueError(f"the layer rule '{rule.match}': {error}") from None
        return self

    def _check_part(self, part: WeightFormat) -> None:
        if not part.quantized:
            return
        grouped = part.format in ("int8", "int4") and part.group_size is not None
        if not self.makes_checkpoint or part is self.weights.embedding:
            if not grouped or part.activations in STATIC_ACTIVATIONS or part.algorithm:
                raise ValueError(
                    "round-to-nearest, and with it the embedding, takes integers in groups with activations "
                    "of fp32 or int8"
                )
            return
        if not part.symmetric or (part.format == "int8" and part.group_size is not None):
            raise ValueError(
                "a quantized checkpoint's integers are symmetric, and its int8 has a scale per output channel"
            )
        algorithm = part.algorithm or self.algorithm
        if algorithm == "smoothquant" and part.activations != "int8-static":
            raise ValueError("smoothquant is for int8 weights with int8-static activations")
        if algorithm in ("awq", "gptq") and part.format != "int4":
            raise ValueError(f"{algorithm} is for int4 weights, not for {part.format}")
