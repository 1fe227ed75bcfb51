"""Quantizers of training against what engines are written with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.quantization import rtn
from nvlm_deploy.quantization.fake import WeightQuantizer, round_in_groups, weight_quantizers
from nvlm_deploy.quantization.layout import storage_codec
from nvlm_deploy.quantization.plan import EMBEDDING, Storage
from nvlm_deploy.synthetic.shapes import released_style_config
from tests.conftest import TINY_SHAPE


def _weight() -> torch.Tensor:
    """Rows of very different sizes; one of zeros, one of positive numbers alone, one below FP16's range."""
    weight_NK = torch.randn(40, 80, generator=torch.Generator().manual_seed(3))
    weight_NK *= torch.logspace(-6, 2, 40).unsqueeze(1)
    weight_NK[0] = 0
    weight_NK[1] = weight_NK[1].abs()
    weight_NK[2] *= 1e-6
    return weight_NK


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 16), (4, 32), (4, 128), (8, 32)])
def test_rounding_is_that_of_the_writer_bit_for_bit(bits: int, group_size: int, symmetric: bool) -> None:
    weight_NK = _weight()
    matrix = rtn.quantize(weight_NK.numpy(), bits=bits, group_size=group_size, symmetric=symmetric)
    expected = rtn.dequantize(matrix, weight_NK.shape[1])
    found = round_in_groups(weight_NK, bits=bits, group_size=group_size, symmetric=symmetric)
    # Zeros may differ in their sign.
    assert np.array_equal(found.numpy(), expected)


def test_weights_pass_the_dtype_of_the_checkpoint_first() -> None:
    weight_NK, storage = _weight(), Storage("int4", 32)
    through_bfloat16 = WeightQuantizer(storage, torch.bfloat16)(weight_NK)
    assert torch.equal(
        through_bfloat16, WeightQuantizer(storage, torch.float32)(weight_NK.bfloat16().float())
    )
    assert not torch.equal(through_bfloat16, WeightQuantizer(storage, torch.float32)(weight_NK))
    half = WeightQuantizer(Storage("fp16"), torch.float32)(weight_NK)
    assert torch.equal(half, weight_NK.half().float())


def test_integers_of_quantized_checkpoints_are_those_of_their_codec() -> None:
    weight_NK, storage = _weight()[:, :64], Storage("int8", activations="int8", algorithm="max")
    codec = storage_codec(storage)
    expected = codec.fake(weight_NK, codec.amax(weight_NK))
    assert torch.equal(WeightQuantizer(storage, torch.float32)(weight_NK), expected)


def test_gradients_pass_straight_through() -> None:
    weight_NK = _weight().requires_grad_()
    factors_NK = torch.randn(weight_NK.shape)
    (WeightQuantizer(Storage("int4", 32), torch.bfloat16)(weight_NK) * factors_NK).sum().backward()
    assert weight_NK.grad is not None
    assert torch.equal(weight_NK.grad, factors_NK)


def test_every_matrix_has_a_quantizer_with_the_dtype_on_disk() -> None:
    config = NvlmConfig.from_dict(released_style_config(TINY_SHAPE))
    found = weight_quantizers(load_yaml_model("recipe", "int4-rtn", Recipe), config)
    assert found[EMBEDDING].storage.bits == 8
    assert found["language.layers.0.mlp.up_proj.weight"].released == torch.bfloat16
    assert found["language.layers.0.attention.q_proj.weight"].released == torch.float32
    assert "language.norm.weight" not in found


@pytest.mark.parametrize("name", ["int4-awq-g32", "fp8", "nvfp4", "int8-sq"])
def test_recipes_whose_scales_need_more_than_the_weight_are_refused(name: str) -> None:
    config = NvlmConfig.from_dict(released_style_config(TINY_SHAPE))
    with pytest.raises(UnsuitableError, match="do not follow from its weights alone"):
        weight_quantizers(load_yaml_model("recipe", name, Recipe), config)
