"""TensorRT-LLM checkpoints of NVLM-X and NVLM-H: read back, computed with, spelled out, refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError
from nvlm_deploy.export.tensorrt_llm import (
    RELEASES,
    LanguageSource,
    Parallel,
    TensorRtLlmReader,
    load_tensorrt_llm_model,
    plan_layout,
)
from nvlm_deploy.export.tensorrt_llm.config import model_config as make_config
from nvlm_deploy.export.tensorrt_llm.cross_config import CROSS_KEY
from nvlm_deploy.export.tensorrt_llm.matrices import CacheRows
from nvlm_deploy.export.tensorrt_llm.schemes import FLOAT, Form
from nvlm_deploy.models.cross_attention import TileMemory
from nvlm_deploy.models.decoder import LanguageDecoder
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import cross_style_config

from .conftest import (
    HEAD_DIM,
    SHAPE,
    STORAGES,
    Export,
    MakeCheckpoint,
    quantize_group,
    read_shards,
    write_quantized,
)
from .test_checkpoint import content, reference, same

FORMS = ("16 bits", *STORAGES)
# KV heads of its own, and all that an NVLM-X may have.
OPTIONS: dict[str, object] = {"num_key_value_heads": 4, "gated_mlp": True, "attention_bias": True}
CROSS_SHARING = (
    ("cross_attn.k_proj", "cross_attn.v_proj"),
    ("cross_attn.q_proj",),
    ("cross_attn.o_proj",),
    ("cross_attn_mlp.gate_proj", "cross_attn_mlp.up_proj"),
    ("cross_attn_mlp.down_proj",),
)
LAYER = "language_model.model.layers.1."


def cross_config(options: dict[str, object]) -> dict[str, Any]:
    config = cross_style_config(SHAPE, "X", [1], **options)
    config["llm_config"]["head_dim"] = HEAD_DIM
    return config


@pytest.fixture(scope="session")
def released_x(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cross") / "released"
    write_random_checkpoint(cross_config(OPTIONS), directory)
    return directory


@pytest.fixture(scope="session")
def make_x(released_x: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """As `make_checkpoint`, of an NVLM-X."""
    made = {"16 bits": released_x}

    def make(name: str) -> Path:
        if name not in made:
            directory = tmp_path_factory.mktemp("unified-x") / "checkpoint"
            write_quantized_x(released_x, directory, name)
            made[name] = directory
        return made[name]

    return make


def write_quantized_x(released: Path, output: Path, form: str) -> None:
    """Quantize what `write_quantized` does, and then the layer with cross-attention."""
    write_quantized(released, output, lambda _: STORAGES[form])
    tensors, generator = read_shards(output), torch.Generator().manual_seed(6)
    for group in CROSS_SHARING:
        storages = dict.fromkeys((LAYER + name for name in group), STORAGES[form])
        tensors.update(quantize_group(tensors, storages, generator))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, output / "model.safetensors")
    path = output / "hf_quant_config.json"
    unified = json.loads(path.read_text())
    excluded = unified["quantization"]["exclude_modules"]
    unified["quantization"]["exclude_modules"] = [name for name in excluded if "cross_attn" not in name]
    path.write_text(json.dumps(unified))


@pytest.mark.parametrize("form", FORMS)
def test_any_number_of_ranks_holds_the_same(form: str, make_x: MakeCheckpoint) -> None:
    source = LanguageSource.open(make_x(form))
    names = [name for name in source.names() if name.startswith("language_model.")]
    for tp in (1, 2, 4, 8):
        layout = plan_layout(source, RELEASES["1.2"], Parallel(tp), split_embedding=True)
        table = layout.table()
        table.check_sources(source.names(), form)
        ranks = dict(table.convert(source.read))
        back = dict(table.inverse().convert(ranks.__getitem__))
        assert set(back) == set(names)
        assert all(same(back[name], source.read(name)) for name in names), tp


@torch.no_grad()
def logits_with_tiles(decoder: LanguageDecoder) -> Tensor:
    """Two tiles of three entries, and tokens that see none, one, or both of them."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, SHAPE.vocab_size, (1, 24), generator=generator)
    features_BLD = torch.randn(1, 6, SHAPE.hidden, generator=generator)
    memory = TileMemory(features_BLD, torch.tensor([[0, 0, 0, 1, 1, 1]]))
    visible_BT2 = torch.tensor([[[0, 0], [0, 1], [1, 2], [0, 2]]]).repeat(1, 6, 1)
    return decoder.logits(decoder(decoder.embed_tokens(ids_BT), None, memory, visible_BT2))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_back_computes_the_same(form: str, make_x: MakeCheckpoint, export: Export) -> None:
    checkpoint = make_x(form)
    source = read_shards(checkpoint)
    expected = reference(checkpoint, form)
    layer: Any = expected.layers[1]
    for gate, name in ((layer.cross.gate, "cross_attn_gate"), (layer.cross.mlp_gate, "cross_attn_mlp_gate")):
        gate.data = source[LAYER + name].float()
    theirs = logits_with_tiles(expected)
    assert theirs.std() > 0.05
    # Every format goes over any number of ranks above; here two of them do.
    for tp in (1, 2, 4) if form in ("16 bits", "W4A16_AWQ") else (4,):
        ranks = export(checkpoint, dtype="float16", tp=tp)
        found = content(ranks)
        for name, tensor in found.items():
            if name in source and tensor.dtype != torch.float16 and not name.endswith("gate"):
                assert same(tensor, source[name]), name
        ours = logits_with_tiles(load_tensorrt_llm_model(ranks))
        assert (ours - theirs).abs().max() <= 1e-3


def test_names_and_shards_of_16_bits(released_x: Path, export: Export) -> None:
    """By hand, because a table that is wrong in both directions reads back right."""
    source, output = read_shards(released_x), export(released_x, tp=8)
    rank = load_file(output / "rank5.safetensors")
    prefix, heads = "transformer.layers.1.cross.", SHAPE.heads // 8 * HEAD_DIM
    mine = slice(5 * heads, 6 * heads)
    # Four KV heads for eight GPUs: the sixth has the third, as the fifth.
    kv = slice(2 * HEAD_DIM, 3 * HEAD_DIM)
    inner = slice(5 * 48, 6 * 48)
    q, k, v, o = (source[f"{LAYER}cross_attn.{x}_proj.weight"] for x in "qkvo")
    bias_q, bias_k, bias_v = (source[f"{LAYER}cross_attn.{x}_proj.bias"] for x in "qkv")
    gate, up, down = (source[f"{LAYER}cross_attn_mlp.{x}_proj.weight"] for x in ("gate", "up", "down"))
    expected = {
        "input_layernorm.weight": source[LAYER + "cross_attn_layernorm.weight"],
        "kv_layernorm.weight": source[LAYER + "cross_attn_kv_layernorm.weight"],
        "attention.q.weight": q[mine],
        "attention.q.bias": bias_q[mine],
        "attention.kv.weight": torch.cat([k[kv], v[kv]]),
        "attention.kv.bias": torch.cat([bias_k[kv], bias_v[kv]]),
        "attention.dense.weight": o[:, mine],
        "gate_attn": source[LAYER + "cross_attn_gate"].float(),
        "post_layernorm.weight": source[LAYER + "cross_attn_mlp_layernorm.weight"],
        "mlp.fc.weight": gate[inner],
        "mlp.gate.weight": up[inner],
        "mlp.proj.weight": down[:, inner],
        "gate_ffwd": source[LAYER + "cross_attn_mlp_gate"].float(),
    }
    found = {name.removeprefix(prefix): tensor for name, tensor in rank.items() if name.startswith(prefix)}
    assert set(found) == set(expected)
    assert all(same(found[name], tensor) for name, tensor in expected.items())
    assert not any(name.startswith("transformer.layers.0.cross.") for name in rank)


def test_layers_are_counted_as_rows_of_caches(released_x: Path, export: Export) -> None:
    config = json.loads((export(released_x, tp=2) / "config.json").read_text())
    # The block is behind the attention of its layer, layer 1, whose row is 1.
    assert config["num_hidden_layers"] == 3
    assert config["cross_attention_layers"] == [2]
    assert config["num_kv_heads_per_layer"] == [2, 2, 0]
    assert config["num_kv_heads_per_cross_attn_layer"] == [0, 0, 4]
    assert config[CROSS_KEY]["self_rows"] == [0, 1]
    assert (config["embed_vocab_size"], config["vision_output_dim"]) == (SHAPE.vocab_size, SHAPE.hidden)
    assert "qwen_type" not in config
    cross = NvlmConfig.from_dict(cross_config({})).cross_attention
    assert cross is not None
    seven = replace(cross, layers=(1, 3, 6))
    assert CacheRows.of(seven, 7) == CacheRows((0, 1, 3, 4, 6, 7, 8), (2, 5, 9))
    first = replace(seven, placement="before_layer")
    assert CacheRows.of(first, 7) == CacheRows((0, 2, 3, 5, 6, 7, 9), (1, 4, 8))


def plan(checkpoint: Path, release: str = "1.2", parallel: Parallel = Parallel()) -> None:  # noqa: B008
    plan_layout(LanguageSource.open(checkpoint), RELEASES[release], parallel, split_embedding=True)


def test_what_cannot_be_is_refused(released_x: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsuitableError, match=r"NVLM-X, and TensorRT-LLM 0.12-jetson has no decoder with"):
        plan(released_x, "0.12-jetson")
    with pytest.raises(UnsuitableError, match=r"--pp 2: .* has no pipeline stages"):
        plan(released_x, parallel=Parallel(1, 2))
    cases: dict[str, tuple[dict[str, object], Parallel, type[NvlmError], str]] = {
        "head": ({"head_dim": 64}, Parallel(), UnsuitableError, "have 64 features and the decoder's 128"),
        "heads": (
            {"num_attention_heads": 6, "num_key_value_heads": 3},
            Parallel(4),
            UsageError,
            "the 6 heads and 3 KV heads of this model's cross-attention",
        ),
    }
    for name, (options, parallel, kind, message) in cases.items():
        write_random_checkpoint(cross_config(options), tmp_path / name)
        with pytest.raises(kind, match=message):
            plan(tmp_path / name, parallel=parallel)


def test_an_fp8_cache_is_refused(released_x: Path, tmp_path: Path) -> None:
    write_quantized(released_x, tmp_path / "kv8", lambda _: STORAGES["FP8"], fp8_cache=True)
    with pytest.raises(UnsuitableError, match="would hold keys and values of tiles"):
        plan(tmp_path / "kv8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 4}, "num_hidden_layers do not fit"),
        ({"cross_attention_layers": [1]}, "cross_attention_layers and"),
        ({"self_rows": [0, 2]}, "has the rows of other layers"),
        ({"rope": True}, "rope"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(
    change: dict[str, Any], message: str, released_x: Path, export: Export
) -> None:
    output = export(released_x)
    path = output / "config.json"
    config = json.loads(path.read_text())
    (config if set(change) & set(config) else config[CROSS_KEY]).update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(NvlmError, match=message):
        content(output)


def test_a_tensor_too_few_is_named(released_x: Path, export: Export, tmp_path: Path) -> None:
    output = export(released_x)
    tensors = load_file(output / "rank0.safetensors")
    del tensors["transformer.layers.1.cross.gate_attn"]
    shutil.copytree(output, tmp_path / "less")
    save_file(tensors, tmp_path / "less" / "rank0.safetensors")
    with pytest.raises(NvlmError, match=r"rank0/transformer.layers.1.cross.gate_attn is missing"):
        content(tmp_path / "less")


def test_layers_of_other_formats_keep_their_names(make_x: MakeCheckpoint) -> None:
    """A block that is kept in 16 bits is excluded by the names of our modules."""
    layout = plan_layout(
        LanguageSource.open(make_x("FP8")), RELEASES["1.2"], Parallel(), split_embedding=True
    )
    kept = {
        name: make_float(form) if name.startswith("cross.") else form
        for name, form in layout.forms[1].items()
    }
    config, _ = make_config(replace(layout, forms=(layout.forms[0], kept)), "bfloat16", RELEASES["1.2"])
    assert config["quantization"]["exclude_modules"] == [
        "lm_head",
        *(
            f"transformer.layers.1.cross.{name}"
            for name in ("attention.q", "attention.kv", "attention.dense")
        ),
        *(f"transformer.layers.1.cross.mlp.{name}" for name in ("fc", "gate", "proj")),
    ]


def make_float(form: Form) -> Form:
    assert form.scheme.algorithm == "FP8"
    return Form(FLOAT)


def test_the_config_reads_back(released_x: Path, export: Export) -> None:
    cross = TensorRtLlmReader(export(released_x, tp=2)).layout.cross
    assert isinstance(cross, CrossAttentionConfig)
    assert cross == NvlmConfig.from_directory(released_x).cross_attention
