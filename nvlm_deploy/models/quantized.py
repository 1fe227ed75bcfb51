"""The reference model of a quantized checkpoint: it computes in FP32 with the very numbers that are stored.

Shapes: N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvlm_deploy.models.decoder import DecoderLayer, LanguageDecoder
from nvlm_deploy.models.loading import meta_model
from nvlm_deploy.models.nvlm_d import NvlmD
from nvlm_deploy.quantization.checkpoint import QuantizedReader, QuantizedWeights
from nvlm_deploy.quantization.formats import fake_quantize_fp8, fake_quantize_int8, fake_quantize_nvfp4
from nvlm_deploy.quantization.plan import Storage


class _Quantizer(Protocol):
    """Rounds activations of any shape through a format with a static scale, float32 ()."""

    def __call__(self, x: Tensor, input_scale: Tensor) -> Tensor: ...


_QUANTIZERS: dict[str, _Quantizer] = {
    "fp8": fake_quantize_fp8,
    "int8-static": fake_quantize_int8,
    "nvfp4": fake_quantize_nvfp4,
}


class Quantizers(Protocol):
    """What matrices of a checkpoint do to their inputs, by the names of `nvlm_deploy.models`."""

    @property
    def storages(self) -> Mapping[str, Storage]:
        """Storage of every quantized matrix."""

    def input_scale(self, name: str) -> Tensor | None:
        """Scale of static activations, float32 ()."""

    def pre_quant_scale(self, name: str) -> Tensor | None:
        """What the inputs of a matrix are multiplied with, float32 [K]."""

    def kv_scale(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Scales of a layer's keys and values, float32 ()."""


class QuantizedLinear(nn.Module):
    """A linear whose weight has been through its format, and whose inputs go through theirs."""

    def __init__(
        self,
        weight_NK: Tensor,
        bias_N: Tensor | None,
        pre_quant_scale_K: Tensor | None,
        quantize_input: Callable[[Tensor], Tensor] | None,
    ) -> None:
        """`weight_NK` is what the codes stand for, float32."""
        super().__init__()
        self.weight = nn.Parameter(weight_NK, requires_grad=False)
        self.bias = None if bias_N is None else nn.Parameter(bias_N, requires_grad=False)
        self.pre_quant_scale: Tensor | None
        self.register_buffer("pre_quant_scale", pre_quant_scale_K)
        self.quantize_input = quantize_input

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_quant_scale is not None:
            x = x * self.pre_quant_scale
        if self.quantize_input is not None:
            x = self.quantize_input(x)
        return F.linear(x, self.weight, self.bias)


def load_quantized_model(directory: Path) -> NvlmD:
    """Load a quantized checkpoint in evaluation mode, FP32.

    Activations that are quantized on the fly by an engine's kernels (`int8`) stay FP32 here.

    Raises:
        NvlmError: the checkpoint is incomplete or does not fit its configs.
    """
    weights = QuantizedWeights(QuantizedReader(directory))
    model = meta_model(weights.reader.config)
    state = {name: weights.read(name, torch.float32) for name in weights.names()}
    model.load_state_dict(state, strict=True, assign=True)
    install_quantizers(model, model.language, weights)
    return model.eval()


def install_quantizers(model: nn.Module, decoder: LanguageDecoder, quantizers: Quantizers) -> None:
    """Let a model that has its weights treat inputs, keys and values as `quantizers` say.

    `decoder` is the model's, or all that there is of it below `model`, under its name `language`.
    """
    for name in quantizers.storages:
        _replace_linear(model, quantizers, name.removesuffix(".weight"))
    _quantize_kv_cache(decoder, quantizers)


def input_quantizer(activations: str, input_scale: Tensor | None) -> Callable[[Tensor], Tensor] | None:
    """What the inputs of a linear go through: activations with a static scale, float32 (), are rounded."""
    quantize = _QUANTIZERS.get(activations)
    return None if quantize is None or input_scale is None else partial(quantize, input_scale=input_scale)


def _replace_linear(model: nn.Module, weights: Quantizers, name: str) -> None:
    parent, _, leaf = name.rpartition(".")
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    weight = f"{name}.weight"
    input_scale = weights.input_scale(weight)
    quantize_input = input_quantizer(weights.storages[weight].activations, input_scale)
    bias = None if linear.bias is None else linear.bias.detach()
    quantized = QuantizedLinear(linear.weight.detach(), bias, weights.pre_quant_scale(weight), quantize_input)
    setattr(model.get_submodule(parent), leaf, quantized)


def _quantize_kv_cache(decoder: LanguageDecoder, weights: Quantizers) -> None:
    for number, layer in enumerate(decoder.layers):
        scales = weights.kv_scale(number)
        if scales is not None:
            keys, values = (partial(fake_quantize_fp8, input_scale=scale) for scale in scales)
            assert isinstance(layer, DecoderLayer)
            layer.attention.quantize_kv = (keys, values)
