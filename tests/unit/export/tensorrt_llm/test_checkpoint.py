"""TensorRT-LLM checkpoints of every format on 1 to 16 ranks: read back, computed with, spelled out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nvlm_deploy.export.tensorrt_llm import (
    RELEASES,
    LanguageSource,
    Parallel,
    TensorRtLlmReader,
    load_tensorrt_llm_model,
    plan_layout,
)
from nvlm_deploy.export.tensorrt_llm.shapes import expected_tensors
from nvlm_deploy.export.tensorrt_llm.table import rank_and_name
from nvlm_deploy.models import NvlmD, load_model
from nvlm_deploy.models.decoder import DecoderLayer, LanguageDecoder
from nvlm_deploy.models.quantized import load_quantized_model
from nvlm_deploy.quantization.formats import fake_quantize_fp8

from .conftest import HEAD_DIM, SHAPE, STORAGES, Export, MakeCheckpoint, Tensors, read_shards

FORMS = ("16 bits", *STORAGES, "FP8+KV8")
RANKS = [(tp, pp) for pp in (1, 2) for tp in (1, 2, 4, 8)]
LAYER = "language_model.model.layers.1."


def content(directory: Path) -> Tensors:
    return dict(TensorRtLlmReader(directory).tensors())


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit."""
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*flat)


@pytest.mark.parametrize("form", FORMS)
def test_any_number_of_ranks_holds_the_same(form: str, make_checkpoint: MakeCheckpoint) -> None:
    """The table alone, both ways; files are read back below."""
    source = LanguageSource.open(make_checkpoint(form))
    names = [name for name in source.names() if name.startswith("language_model.")]
    for tp, pp in RANKS:
        table = plan_layout(source, RELEASES["1.2"], Parallel(tp, pp), split_embedding=True).table()
        table.check_sources(source.names(), form)
        ranks = dict(table.convert(source.read))
        assert {rank_and_name(target)[0] for target in ranks} == set(range(tp * pp))
        back = dict(table.inverse().convert(ranks.__getitem__))
        assert set(back) == set(names)
        exact = [name for name in names if not name.endswith(("k_scale", "v_scale"))]
        assert all(same(back[name], source.read(name)) for name in exact), (tp, pp)


def decoder_logits(decoder: LanguageDecoder) -> Tensor:
    ids = torch.randint(0, SHAPE.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return decoder.logits(decoder(decoder.embed_tokens(ids)))


def reference(checkpoint: Path, form: str) -> LanguageDecoder:
    """The quantized reference, with what a TensorRT-LLM checkpoint has in FP16 rounded to that."""
    model: NvlmD = load_model(checkpoint) if form == "16 bits" else load_quantized_model(checkpoint)
    decoder = model.language
    packed = {id(module.weight) for module in decoder.modules() if hasattr(module, "quantize_input")}
    for parameter in decoder.parameters():
        if id(parameter) not in packed:
            parameter.data = parameter.data.half().float()
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        if layer.attention.quantize_kv is not None:
            scales = [quantize.keywords["input_scale"] for quantize in layer.attention.quantize_kv]  # type: ignore[attr-defined]
            one = torch.stack(scales).max().clamp(min=1)
            layer.attention.quantize_kv = ((lambda x, s=one: fake_quantize_fp8(x, s)),) * 2
    return decoder


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_back_computes_the_same(
    form: str, make_checkpoint: MakeCheckpoint, export: Export
) -> None:
    checkpoint = make_checkpoint(form)
    together = export(checkpoint, dtype="float16", tp=8, pp=2)
    found, source = content(together), read_shards(checkpoint)
    for name, tensor in found.items():
        if name in source and not name.endswith(("k_scale", "v_scale")):
            floats = tensor.dtype == torch.float16
            assert same(tensor, source[name].half() if floats else source[name]), name
        elif name not in source:
            # A factor for inputs that are not scaled, where the format wants one for all.
            assert name.endswith("pre_quant_scale")
            assert (tensor == 1).all()
    decoder = load_tensorrt_llm_model(together)
    ours, theirs = decoder_logits(decoder), decoder_logits(reference(checkpoint, form))
    assert theirs.std() > 0.05
    assert (ours - theirs).abs().max() <= 1e-3


def test_names_and_shards_of_16_bits(released: Path, export: Export) -> None:
    """By hand, because a table that is wrong in both directions reads back right."""
    source, output = read_shards(released), export(released, tp=4, pp=2)
    assert sorted(path.name for path in output.glob("rank*")) == [f"rank{r}.safetensors" for r in range(8)]
    # The third of four GPUs of the second stage, whose only layer is layer 1 of the model.
    rank = load_file(output / "rank6.safetensors")
    heads, kv_rows = 2 * HEAD_DIM, slice(HEAD_DIM, 2 * HEAD_DIM)
    mine = slice(2 * heads, 3 * heads)
    q, k, v, o = (source[f"{LAYER}self_attn.{x}_proj.weight"].bfloat16() for x in "qkvo")
    bias_q, bias_k, bias_v = (source[f"{LAYER}self_attn.{x}_proj.bias"].bfloat16() for x in "qkv")
    gate, up, down = (source[f"{LAYER}mlp.{x}_proj.weight"] for x in ("gate", "up", "down"))
    inner = slice(2 * 96, 3 * 96)
    head = torch.cat([source["language_model.lm_head.weight"], torch.zeros(3, 256, dtype=torch.bfloat16)])
    prefix = "transformer.layers.0."
    expected = {
        prefix + "input_layernorm.weight": source[LAYER + "input_layernorm.weight"],
        prefix + "post_layernorm.weight": source[LAYER + "post_attention_layernorm.weight"],
        # Two KV heads for four GPUs: this one has the second, as its neighbor.
        prefix + "attention.qkv.weight": torch.cat([q[mine], k[kv_rows], v[kv_rows]]),
        prefix + "attention.qkv.bias": torch.cat([bias_q[mine], bias_k[kv_rows], bias_v[kv_rows]]),
        prefix + "attention.dense.weight": o[:, mine],
        prefix + "mlp.fc.weight": gate[inner],
        prefix + "mlp.gate.weight": up[inner],
        prefix + "mlp.proj.weight": down[:, inner],
        "transformer.ln_f.weight": source["language_model.model.norm.weight"],
        "lm_head.weight": head[2 * 81 : 3 * 81],
    }
    assert set(rank) == set(expected)
    assert all(same(rank[name], tensor) for name, tensor in expected.items())
    first = load_file(output / "rank2.safetensors")["transformer.vocab_embedding.weight"]
    table = source["language_model.model.embed_tokens.weight"]
    assert same(first, table[2 * 81 : 3 * 81])
    whole = load_file(export(released, tp=4, embedding="replicated") / "rank2.safetensors")
    assert same(whole["transformer.vocab_embedding.weight"], table)


def test_packed_int4_with_padding(make_checkpoint: MakeCheckpoint, export: Export) -> None:
    checkpoint = make_checkpoint("W4A16_AWQ")
    source, output = read_shards(checkpoint), export(checkpoint, tp=2)
    prefix = "transformer.layers.1.mlp."
    ranks = [load_file(output / f"rank{rank}.safetensors") for rank in (0, 1)]
    assert json.loads((output / "config.json").read_text())["intermediate_size"] == 512
    # 384 inner features are 256 on the first GPU, and 128 and as many of padding on the second.
    gate, down = source[LAYER + "mlp.gate_proj.weight"], source[LAYER + "mlp.down_proj.weight"]
    empty = torch.zeros(64, 256, dtype=torch.uint8)
    for rank, rows in enumerate((gate[:128], torch.cat([gate[128:], empty]))):
        assert same(ranks[rank][prefix + "fc.weight"], rows.view(torch.int8))
    second = ranks[1][prefix + "proj.weight"]
    assert same(second[:, :128], down[:, 256:].view(torch.int8).contiguous())
    assert not second[:, 128:].any()
    scale = ranks[1][prefix + "proj.weights_scaling_factor"]
    assert torch.equal(scale[:, :1], source[LAYER + "mlp.down_proj.weight_scale"][:, 2:])
    assert scale.shape == (256, 2)
    assert not scale[:, 1].any()
    factor = ranks[1][prefix + "proj.prequant_scaling_factor"]
    assert torch.equal(factor[:128], source[LAYER + "mlp.down_proj.pre_quant_scale"][256:])
    assert (factor[128:] == 1).all()
    # The norm took this one over.
    assert (ranks[1][prefix + "fc.prequant_scaling_factor"] == 1).all()


@pytest.mark.parametrize(
    ("form", "suffix", "dtype", "shape"),
    [
        ("FP8", "qkv.weight", torch.float8_e4m3fn, (768, 256)),
        ("FP8", "qkv.weights_scaling_factor", torch.float32, (1,)),
        ("FP8", "qkv.activation_scaling_factor", torch.float32, (1,)),
        ("FP8+KV8", "kv_cache_scaling_factor", torch.float32, (1,)),
        ("W4A8_AWQ", "qkv.weight", torch.int8, (384, 256)),
        ("W4A8_AWQ", "qkv.weights_scaling_factor", torch.float32, (768, 2)),
        ("W4A8_AWQ", "qkv.weights_scaling_factor_2", torch.float32, (1,)),
        ("W4A8_AWQ", "qkv.prequant_scaling_factor", torch.bfloat16, (256,)),
        ("W8A8_SQ_PER_CHANNEL", "qkv.weights_scaling_factor", torch.float32, (768,)),
        ("W8A8_SQ_PER_CHANNEL", "dense.weights_scaling_factor", torch.float32, (256,)),
        ("W8A8_SQ_PER_CHANNEL", "dense.prequant_scaling_factor", torch.bfloat16, (512,)),
        ("NVFP4", "qkv.weight", torch.uint8, (768, 128)),
        ("NVFP4", "qkv.weights_scaling_factor", torch.float8_e4m3fn, (768, 16)),
        ("NVFP4", "qkv.weights_scaling_factor_2", torch.float32, (1,)),
    ],
)
def test_dtypes_and_shapes(
    form: str,
    suffix: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    make_checkpoint: MakeCheckpoint,
) -> None:
    source = LanguageSource.open(make_checkpoint(form))
    layout = plan_layout(source, RELEASES["1.2"], Parallel(tp=2), split_embedding=True)
    tensor = expected_tensors(layout, torch.bfloat16)[f"rank0/transformer.layers.0.attention.{suffix}"]
    assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)


def test_gptq_is_int4_without_factors(make_checkpoint: MakeCheckpoint, export: Export) -> None:
    output = export(make_checkpoint("GPTQ"))
    assert json.loads((output / "config.json").read_text())["quantization"] == {
        "quant_algo": "W4A16_AWQ",
        "group_size": 64,
        "has_zero_point": False,
        "pre_quant_scale": False,
        "kv_cache_quant_algo": None,
        "exclude_modules": ["lm_head"],
    }
    assert not any("prequant" in name for name in load_file(output / "rank0.safetensors"))


def test_the_cache_has_one_scale_of_at_least_one(make_checkpoint: MakeCheckpoint, export: Export) -> None:
    checkpoint = make_checkpoint("FP8+KV8")
    source, output = read_shards(checkpoint), export(checkpoint)
    scales = [source[f"{LAYER}self_attn.{x}_proj.{x}_scale"] for x in "kv"]
    found = load_file(output / "rank0.safetensors")["transformer.layers.1.attention.kv_cache_scaling_factor"]
    assert float(found) == max(1.0, *map(float, scales))
    assert json.loads((output / "config.json").read_text())["quantization"]["kv_cache_quant_algo"] == "FP8"
