"""TensorRT-LLM checkpoints of recipes as they ship, against ModelOpt's own exporter and the reference."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.cli.main import run
from nvlm_deploy.export.tensorrt_llm import load_tensorrt_llm_model
from nvlm_deploy.models.decoder import LanguageDecoder, SelfAttention
from nvlm_deploy.models.quantized import QuantizedLinear, load_quantized_model
from nvlm_deploy.quantization.checkpoint import QuantizedReader, QuantizedWeights
from nvlm_deploy.quantization.formats import Int4, fake_quantize_fp8
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import ModelShape, released_style_config

pytestmark = pytest.mark.timeout(600)

Tensors = dict[str, Tensor]
# Groups of 128 in matrices that two GPUs share, and a vocabulary that ModelOpt need not pad.
SHAPE = ModelShape(
    tile_size=28,
    vision_hidden=16,
    vision_intermediate=16,
    vision_layers=1,
    vision_heads=1,
    hidden=256,
    intermediate=512,
    layers=2,
    heads=4,
    kv_heads=2,
    vocab_size=320,
    max_positions=512,
    bos_token_id=256,
    eos_token_id=258,
)
HEAD_DIM = 128
PRESETS = {
    "fp8": "FP8_DEFAULT_CFG",
    "fp8-kv8": "FP8_DEFAULT_CFG",
    "int4-awq": "INT4_AWQ_CFG",
    "int4-gptq": "INT4_AWQ_CFG",
    "w4a8-awq": "W4A8_AWQ_BETA_CFG",
    "int8-sq": "INT8_SMOOTHQUANT_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
}
LINEARS = (*(f"attention.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
IDS = torch.arange(60).unsqueeze(0)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("released") / "checkpoint"
    config = released_style_config(SHAPE)
    config["llm_config"]["head_dim"] = HEAD_DIM
    write_random_checkpoint(config, directory)
    (directory.parent / "one.jsonl").write_text(json.dumps({"question": "What?", "answer": "That."}) + "\n")
    spec = {
        "name": "one",
        "description": "of a test",
        "licence": "CC0-1.0",
        "source": {"kind": "jsonl", "path": "one.jsonl"},
        "count": 1,
        "seed": 0,
        "max_tokens": 256,
    }
    (directory.parent / "one.yaml").write_text(yaml.safe_dump(spec))
    return directory


@pytest.fixture(scope="module")
def modelopt() -> Any:
    """ModelOpt and its exporter to TensorRT-LLM, if it still has one."""
    with quiet():
        pytest.importorskip("modelopt.torch.quantization")
        export = pytest.importorskip("modelopt.torch.export")
    if not hasattr(export, "export_tensorrt_llm_checkpoint"):
        pytest.skip("this ModelOpt does not write TensorRT-LLM checkpoints any more")
    return export.export_tensorrt_llm_checkpoint


@contextmanager
def quiet() -> Iterator[None]:
    """ModelOpt and transformers warn about each other's versions, and that TensorRT-LLM is not here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def hf_model(weights: QuantizedWeights, released: ModelWeights | None) -> Any:
    """The language model in transformers, with numbers that round to the codes of the checkpoint.

    `released` are taken if they are there: they tell zeros of both signs apart, as NVFP4 does.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    language = weights.reader.config.language
    config = Qwen2Config(
        hidden_size=language.hidden_size,
        intermediate_size=language.intermediate_size,
        num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_heads,
        num_key_value_heads=language.num_kv_heads,
        vocab_size=language.vocab_size,
        rms_norm_eps=language.norm_eps,
        max_position_embeddings=language.max_position_embeddings,
        use_cache=False,
    )
    config.architectures = ["Qwen2ForCausalLM"]
    config.head_dim = language.head_dim
    model = Qwen2ForCausalLM(config).eval()
    state = {}
    for name in weights.names():
        if name.startswith("language."):
            source = released or weights
            tensor = (
                source.read(name, torch.float32)
                if released or not is_w4a8(weights, name)
                else int4(weights, name)
            )
            state[hf_name(name)] = tensor
    model.load_state_dict(state, strict=True)
    return model


def is_w4a8(weights: QuantizedWeights, name: str) -> bool:
    storage = weights.storages.get(name)
    return storage is not None and (storage.format, storage.activations) == ("int4", "fp8")


def int4(weights: QuantizedWeights, name: str) -> Tensor:
    """A matrix of W4A8 before its codes are widened to FP8."""
    packed = weights._packed(weights._rules[name][0])
    return Int4(weights.storages[name].group_size).unpack(packed)


def hf_name(name: str) -> str:
    renamed = {
        "language.lm_head": "lm_head",
        "language.": "model.",
        "attention.": "self_attn.",
        "input_norm": "input_layernorm",
        "post_self_attn.norm": "post_attention_layernorm",
        "post_attention_norm": "post_attention_layernorm",
    }
    for ours, theirs in renamed.items():
        name = name.replace(ours, theirs)
    return name


def amax_of(scale: Tensor, top: float) -> Tensor:
    """The amax that ModelOpt's division by `top` turns into `scale`, bit for bit."""
    amax = scale.float() * top
    for step in (-1, 1):
        near = torch.nextafter(amax, torch.full_like(amax, step * torch.inf))
        amax = torch.where(amax / top == scale, amax, near)
    assert torch.equal(amax / top, scale)
    return amax


def take_over(model: Any, weights: QuantizedWeights, recipe: str) -> None:
    """Give ModelOpt's quantizers the scales of our checkpoint."""
    for layer, block in enumerate(model.model.layers):
        for linear in LINEARS:
            name = f"language.layers.{layer}.{linear}.weight"
            module = block.get_submodule(linear.replace("attention", "self_attn"))
            packed = weights._packed(weights._rules[name][0])
            scale, quantizer = packed.weight_scale, module.weight_quantizer
            if recipe.startswith("fp8"):
                quantizer.amax = amax_of(scale, 448.0)
            elif recipe == "int8-sq":
                quantizer.amax = amax_of(scale, 127.0).view_as(quantizer.amax)
            elif recipe == "nvfp4":
                assert packed.weight_scale_2 is not None
                quantizer.amax = amax_of(packed.weight_scale_2, 6.0 * 448.0)
            else:
                grouped = quantizer[0] if recipe == "w4a8-awq" else quantizer
                grouped.amax = amax_of(scale, 7.0).view_as(grouped.amax)
            if recipe == "w4a8-awq":
                assert packed.weight_scale_2 is not None
                quantizer[1].amax = amax_of(packed.weight_scale_2, 448.0)
            input_scale, factor = weights.input_scale(name), weights.pre_quant_scale(name)
            if input_scale is not None:
                top = {"int8-sq": 127.0, "nvfp4": 6.0 * 448.0}.get(recipe, 448.0)
                module.input_quantizer.amax = amax_of(input_scale, top)
            if factor is not None:
                module.input_quantizer._enable_pre_quant_scale = True
                module.input_quantizer.pre_quant_scale = factor
        scales = weights.kv_scale(layer)
        if scales is not None:
            block.self_attn.k_bmm_quantizer.amax = amax_of(scales[0], 448.0)
            block.self_attn.v_bmm_quantizer.amax = amax_of(scales[1], 448.0)


def theirs(released: Path, quantized: Path, recipe: str, output: Path, export: Any) -> Path:
    """What ModelOpt writes for the same numbers."""
    weights = QuantizedWeights(QuantizedReader(quantized))
    with quiet(), torch.no_grad():
        import modelopt.torch.quantization as mtq

        plain = ModelWeights(CheckpointReader(released)) if recipe == "nvfp4" else None
        model = hf_model(weights, plain)
        config = copy.deepcopy(getattr(mtq, PRESETS[recipe]))
        if recipe == "fp8-kv8":
            config["quant_cfg"] += copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])
        mtq.quantize(model, {**config, "algorithm": "max"}, lambda model: model(IDS))
        take_over(model, weights, recipe)
        export(
            model,
            "qwen",
            torch.float16,
            export_dir=output,
            inference_tensor_parallel=2,
            inference_pipeline_parallel=2,
        )
    return output


@pytest.mark.parametrize("recipe", PRESETS)
def test_tensors_are_those_of_modelopt(released: Path, recipe: str, tmp_path: Path, modelopt: Any) -> None:
    quantized, output = tmp_path / "quantized", tmp_path / "output"
    calibration = ["--calibration", str(released.parent / "one.yaml")]
    if "awq" in recipe:
        calibration += ["--set", "awq.alpha_step=0.5"]
    assert run(["quantize", str(released), "--recipe", recipe, *calibration, "-o", str(quantized)]) == 0
    ranks = ["--tp", "2", "--pp", "2", "--dtype", "float16"]
    assert run(["export", str(quantized), "--format", "trtllm", *ranks, "-o", str(output)]) == 0
    others = theirs(released, quantized, recipe, tmp_path / "theirs", modelopt)
    for rank in range(4):
        compare(load_file(output / f"rank{rank}.safetensors"), load_file(others / f"rank{rank}.safetensors"))
    compare_configs(*(json.loads((place / "config.json").read_text()) for place in (output, others)))
    decoder, reference = load_tensorrt_llm_model(output), load_quantized_model(quantized).language
    round_as_stored(reference)
    with torch.no_grad():
        logits, exact = (m.logits(m(m.embed_tokens(IDS))) for m in (decoder, reference))
    assert (logits - exact).abs().max() <= 1e-3


def round_as_stored(reference: LanguageDecoder) -> None:
    """Round what the export has in FP16, and give the cache its scale there."""
    for module in reference.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not (isinstance(module, QuantizedLinear) and name == "weight"):
                parameter.data = parameter.data.half().float()
        if isinstance(module, SelfAttention) and module.quantize_kv is not None:
            scales = [quantize.keywords["input_scale"] for quantize in module.quantize_kv]  # type: ignore[attr-defined]
            one = partial(fake_quantize_fp8, input_scale=torch.stack(scales).max().clamp(min=1))
            module.quantize_kv = (one, one)


def compare(ours: Tensors, others: Tensors) -> None:
    for name, tensor in others.items():
        if name.endswith((".k_cache_scaling_factor", ".v_cache_scaling_factor")):
            # The loader makes of these what is in kv_cache_scaling_factor.
            assert float(tensor) <= float(ours[name.replace(".k_", ".kv_").replace(".v_", ".kv_")])
            continue
        mine = ours[name]
        assert (mine.dtype, mine.numel()) == (tensor.dtype, tensor.numel()), name
        assert mine.shape == tensor.shape or tensor.shape == (), name
        assert torch.equal(bits(mine), bits(tensor)), name
    # Norms took over the factors of their matrices' inputs, which ModelOpt's exporter does not know.
    for name in set(ours) - set(others):
        assert name.endswith("prequant_scaling_factor")
        assert (ours[name] == 1).all()


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def compare_configs(ours: dict[str, Any], others: dict[str, Any]) -> None:
    """ModelOpt's keys, but for what it says about itself and what it gets wrong."""
    own = {"producer", "rank", "decoder", "rmsnorm", "rotary_pct", "lm_head_bias", "bias", "residual_mlp"}
    own |= {"share_embedding_table", "logits_dtype"}
    for key in set(others) - own - {"quantization"}:
        assert ours[key] == others[key], key
    for key, value in others["quantization"].items():
        if key not in ("has_zero_point", "pre_quant_scale", "group_size") or value:
            assert ours["quantization"].get(key) == value or key == "pre_quant_scale", key
