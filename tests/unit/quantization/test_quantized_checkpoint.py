"""What a quantized checkpoint computes, against a reader of its own that works in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nvlm_deploy.calibration import CalibrationSample, CalibrationSamples
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.eval.agreement import agreement
from nvlm_deploy.models import Nvlm, load_model
from nvlm_deploy.models.decoder import DecoderLayer
from nvlm_deploy.models.quantized import QuantizedLinear, load_quantized_model
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.quantization.checkpoint import QuantizedReader, QuantizedWeights
from nvlm_deploy.quantization.groups import all_groups
from nvlm_deploy.quantization.rtn import dequantize, quantize

from .conftest import CALIBRATED, VISION, Quantized
from .stored import Stored, model_weight, released_to_model, to_e4m3

# KL of the logits, nats a position, and relative error of a matrix, of formats with 8 bits and with 4.
WORST_KL = {8: 5e-3, 4: 5e-2}
FUSED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
)
WORST_ERROR = {8: 0.04, 4: 0.25}


def bits(recipe: str) -> int:
    return 4 if "4" in recipe else 8


def logits(model: Nvlm, sample: CalibrationSample) -> Tensor:
    ids = torch.from_numpy(sample.input_ids).unsqueeze(0)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, torch.from_numpy(sample.visual_positions)] = True
    pixels = torch.from_numpy(normalize_tiles(sample.tiles)) if len(sample.tiles) else None
    with torch.no_grad():
        return model(ids, pixels, mask if pixels is not None else None)[0]


class PlainLinear(nn.Module):
    """A quantized module in float64, from the tensors on disk."""

    def __init__(self, stored: Stored, module: str, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        super().__init__()
        self.stored, self.module, self.weight_NK, self.bias_N = stored, module, weight_NK, bias_N

    def forward(self, x: Tensor) -> Tensor:
        padding = self.stored.weight(self.module).shape[1] - x.shape[-1]
        padded = np.pad(x.double().numpy(), [(0, 0)] * (x.dim() - 1) + [(0, padding)])
        inputs = torch.from_numpy(self.stored.through_input(self.module, padded))[..., : x.shape[-1]]
        y = inputs @ self.weight_NK.T
        return (y if self.bias_N is None else y + self.bias_N.double()).float()


def plain_model(directory: Path) -> Nvlm:
    """The model of a quantized checkpoint whose quantized parts are those of the plain reader."""
    stored = Stored(directory)
    model = load_quantized_model(directory)
    for module in stored.modules():
        for target in released_to_model(module):
            linear = model.get_submodule(target)
            assert isinstance(linear, QuantizedLinear)
            rows, columns = linear.weight.shape
            weight_NK = model_weight(stored, module, target, (rows, columns))
            parent, _, leaf = target.rpartition(".")
            setattr(model.get_submodule(parent), leaf, PlainLinear(stored, module, weight_NK, linear.bias))
    if stored.config["kv_cache_quant_algo"] == "FP8":
        for number, layer in enumerate(model.language.layers):
            stem = f"language_model.model.layers.{number}.self_attn."
            scales = (stored.tensors[stem + name] for name in ("k_proj.k_scale", "v_proj.v_scale"))
            keys, values = (through_fp8(scale) for scale in scales)
            assert isinstance(layer, DecoderLayer)
            layer.attention.quantize_kv = (keys, values)
    return model


def through_fp8(scale: Tensor) -> Callable[[Tensor], Tensor]:
    number = float(scale)
    return lambda x: torch.from_numpy(to_e4m3(x.double().numpy() / number) * number).float()


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Nvlm:
    return load_model(checkpoint)


@pytest.mark.parametrize("recipe", [*CALIBRATED, *VISION])
def test_the_model_computes_with_the_numbers_on_disk(
    quantized: Quantized, samples: CalibrationSamples, reference: Nvlm, recipe: str
) -> None:
    directory = quantized(recipe)
    model, plain = load_quantized_model(directory), plain_model(directory)
    for sample in (samples[1], samples[2]):
        ours, theirs, exact = (logits(m, sample).numpy() for m in (model, plain, reference))
        lost = agreement(exact, ours).kl
        assert 0 < lost < WORST_KL[bits(recipe)]
        # Sums in FP32 and FP64 differ in the last bits, and move a few activations over a tie.
        assert agreement(theirs, ours).kl < 0.05 * lost + 1e-8


@pytest.mark.parametrize("recipe", [*CALIBRATED, *VISION])
def test_every_linear_multiplies_what_its_format_says(
    quantized: Quantized, samples: CalibrationSamples, recipe: str
) -> None:
    directory = quantized(recipe)
    model, plain = load_quantized_model(directory), plain_model(directory)
    passed: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            module.register_forward_hook(partial(keep, passed, name))
    logits(model, samples[2])
    assert len(passed) == len(QuantizedReader(directory).storages) + 2 * 2 * (recipe in VISION)
    for name, (x, y) in passed.items():
        expected = plain.get_submodule(name)(x)
        wrong = ((y - expected).abs() > 1e-5 * expected.abs().amax()).flatten(0, -2).any(-1)
        # A row with an activation that FP32 and FP64 round apart.
        assert wrong.float().mean() <= 0.03, name


def keep(
    passed: dict[str, tuple[Tensor, Tensor]], name: str, _module: nn.Module, x: tuple[Tensor], y: Tensor
) -> None:
    passed[name] = (x[0], y)


@pytest.mark.parametrize("recipe", [*CALIBRATED, *VISION])
def test_the_reader_unpacks_what_is_on_disk(quantized: Quantized, recipe: str) -> None:
    directory = quantized(recipe)
    stored, weights = Stored(directory), QuantizedWeights(QuantizedReader(directory))
    targets = {target: module for module in stored.modules() for target in released_to_model(module)}
    assert set(weights.storages) == {f"{target}.weight" for target in targets}
    for target, module in targets.items():
        read_NK = weights.read(f"{target}.weight")
        exact_NK = model_weight(stored, module, target, (read_NK.shape[0], read_NK.shape[1]))
        # One rounding of the product of code and scale.
        assert torch.allclose(read_NK.double(), exact_NK, rtol=2**-23, atol=0), target


@pytest.mark.parametrize("recipe", [*CALIBRATED, *VISION])
def test_what_scales_move_into_weights_is_taken_out_of_inputs(
    quantized: Quantized, weights: ModelWeights, recipe: str
) -> None:
    """norm x scale x weight is the released product, but for the weight's own rounding."""
    stored = QuantizedWeights(QuantizedReader(quantized(recipe)))
    compared = 0
    for group in all_groups(weights.reader.config):
        for name in group.weights:
            if name not in stored.storages:
                continue
            before_NK, after_NK = weights.read(name, torch.float32), stored.read(name)
            scale_K = stored.pre_quant_scale(name)
            after_NK = after_NK if scale_K is None else after_NK * scale_K
            if group.norm is not None:
                before_NK = before_NK * weights.read(f"{group.norm}.weight", torch.float32)
                after_NK = after_NK * stored.read(f"{group.norm}.weight", torch.float32)
            error = (after_NK - before_NK).norm() / before_NK.norm()
            assert error < WORST_ERROR[bits(stored.storages[name].format)], (name, float(error))
            compared += 1
    assert compared >= 14


def test_norms_change_only_where_they_take_over_a_scale(quantized: Quantized, weights: ModelWeights) -> None:
    untouched = QuantizedWeights(QuantizedReader(quantized("fp8")))
    folded = QuantizedWeights(QuantizedReader(quantized("int4-awq")))
    decoder_norms = {
        f"language.layers.{layer}.{norm}_norm.weight"
        for layer in range(2)
        for norm in ("input", "post_attention")
    }
    for name in weights.names():
        if name in folded.storages:
            continue
        assert torch.equal(untouched.read(name), weights.read(name)), name
        assert torch.equal(folded.read(name), weights.read(name)) == (name not in decoder_norms), name


def test_linears_that_engines_fuse_share_their_scales(quantized: Quantized) -> None:
    for recipe in (*CALIBRATED, *VISION):
        stored = Stored(quantized(recipe))
        stem = "language_model.model.layers.1."
        for names in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("mlp.gate_proj", "mlp.up_proj"),
        ):
            for suffix in ("input_scale", "weight_scale_2", "pre_quant_scale"):
                shared = [stored.tensors.get(f"{stem}{name}.{suffix}") for name in names]
                assert all((a is None) == (shared[0] is None) for a in shared)
                assert len({float(scale) for scale in shared if scale is not None}) <= 1
                assert suffix != "pre_quant_scale" or shared[0] is None, "the norm took it over"
            if recipe.startswith("fp8"):
                assert len({float(stored.tensors[f"{stem}{name}.weight_scale"]) for name in names}) == 1


def test_clips_are_kept(quantized: Quantized) -> None:
    clipped, whole = (Stored(quantized("int4-awq", f"awq.clip={value}")) for value in ("true", "false"))
    smaller = 0
    for module in clipped.modules():
        name = f"{module}.weight_scale"
        ratio = clipped.tensors[name] / whole.tensors[name]
        assert ratio.max() <= 1 + 1e-6
        assert ratio.min() >= 0.5 - 1e-6
        smaller += int((ratio < 0.99).sum())
    assert smaller > 100


def test_awq_and_gptq_lose_less_than_rounding_to_nearest(
    quantized: Quantized, samples: CalibrationSamples, reference: Nvlm, checkpoint: Path
) -> None:
    nearest = load_model(checkpoint)
    for name, parameter in nearest.language.layers.named_parameters():
        if name.endswith("proj.weight"):
            matrix = quantize(parameter.detach().numpy(), bits=4, group_size=32, symmetric=True)
            parameter.data = torch.from_numpy(dequantize(matrix, parameter.shape[1]))

    def kl(model: Nvlm) -> float:
        pairs = [(logits(reference, s).numpy(), logits(model, s).numpy()) for s in samples]
        return sum(agreement(*pair).kl_sum for pair in pairs)

    plain = kl(nearest)
    assert kl(load_quantized_model(quantized("int4-awq", "awq.alpha_step=0.1"))) < plain
    assert kl(load_quantized_model(quantized("int4-gptq"))) < plain


def test_dummy_heads_come_back_as_nothing(quantized: Quantized) -> None:
    stored = Stored(quantized("int4-awq-vit-int4wo"))
    qkv = stored.weight("vision_model.encoder.layers.0.attn.qkv")
    proj = stored.weight("vision_model.encoder.layers.0.attn.proj")
    heads = qkv.reshape(3, -1, 32)
    assert not heads[:, 32:].any()
    assert not proj[:, 32:].any()
    assert heads[:, :32].any()
    assert (stored.pre_quant_scale("vision_model.encoder.layers.0.attn.proj")[32:] == 1).all()


def test_codes_are_the_numbers_without_their_scales(quantized: Quantized) -> None:
    for recipe, name in (
        ("int4-awq", "language.layers.0.mlp.down_proj.weight"),
        ("int8-sq-vit-int8", "vision.layers.1.attention.v_proj.weight"),
        ("int4-awq-vit-int4wo", "vision.layers.1.attention.out_proj.weight"),
    ):
        weights = QuantizedWeights(QuantizedReader(quantized(recipe)))
        codes_NK, scale_NJ = weights.codes(name)
        assert codes_NK.dtype == torch.int8
        group = codes_NK.shape[1] // scale_NJ.shape[1]
        assert torch.equal(codes_NK * scale_NJ.repeat_interleave(group, dim=1), weights.read(name))
