"""What is refused before any work, what the configs say, and a run that is interrupted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_deploy.cli.main import run
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError
from nvlm_deploy.export.tensorrt_llm import (
    RELEASES,
    Layout,
    Parallel,
    TensorRtLlmReader,
    load_tensorrt_llm_model,
    model_config,
)
from nvlm_deploy.export.tensorrt_llm.matrices import FUSED
from nvlm_deploy.export.tensorrt_llm.padding import padded_intermediate
from nvlm_deploy.export.tensorrt_llm.schemes import FLOAT, SCHEMES, Form, scheme_of
from nvlm_deploy.export.tensorrt_llm.shapes import expected_tensors
from nvlm_deploy.export.tensorrt_llm.source import check_divisible
from nvlm_deploy.export.tensorrt_llm.table import rank_and_name
from nvlm_deploy.pipeline.export import ExportRequest, plan_export
from nvlm_deploy.pipeline.resumable import unfinished_directory
from nvlm_deploy.progress import no_progress
from nvlm_deploy.quantization.plan import Storage
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint

from .conftest import STORAGES, Export, MakeCheckpoint, read_shards, write_quantized
from .conftest import model_config as model_config_of_shape

BY_NAME = {scheme.algorithm: scheme for scheme in SCHEMES}
FP4 = Form(BY_NAME["NVFP4"], 16)


def plan(checkpoint: Path, **options: Any) -> Any:
    return plan_export("trtllm", ExportRequest(checkpoint, checkpoint.parent / "never", options))


@pytest.mark.parametrize(
    ("form", "options", "kind", "message", "hint"),
    [
        ("16 bits", {"tp": 3}, UsageError, "--tp 3 does not divide the 8 heads", "--tp 1, 2, 4, 8"),
        ("16 bits", {"tp": 0}, UsageError, "at least 1", None),
        ("16 bits", {"pp": 4}, UsageError, "--pp 4 does not divide the 2 layers", "--pp 1, 2"),
        ("16 bits", {"version": "1.1"}, UsageError, "TensorRT-LLM '1.1'", "1.2"),
        ("16 bits", {"dtype": "float32"}, UsageError, "--dtype float32", "bfloat16"),
        ("16 bits", {"embedding": "none"}, UsageError, "--embedding none", "split"),
        ("16 bits", {"version": "0.12-jetson", "tp": 2}, UnsuitableError, "for one GPU, not for 2", "--tp"),
        ("FP8", {"version": "0.12-jetson"}, UnsuitableError, "0.12-jetson has no FP8", "W4A16_AWQ"),
        ("NVFP4", {"version": "0.12-jetson"}, UnsuitableError, "has no NVFP4", "W8A8_SQ_PER_CHANNEL"),
        ("W4A8_AWQ", {"version": "0.12-jetson"}, UnsuitableError, "has no W4A8_AWQ", None),
    ],
)
def test_what_cannot_be_written(
    form: str,
    options: dict[str, Any],
    kind: type[NvlmError],
    message: str,
    hint: str | None,
    make_checkpoint: MakeCheckpoint,
) -> None:
    with pytest.raises(NvlmError) as caught:
        plan(make_checkpoint(form), **options)
    assert type(caught.value) is kind
    assert message in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (Storage("int8", activations="int8", algorithm="max"), "int8 .* cannot carry: .* other scales"),
        (Storage("nvfp4", 16, algorithm="max"), "nvfp4 with activations of fp32"),
        (Storage("int4", 32, activations="int8", algorithm="awq"), "groups of 32, .* groups of 64 or 128"),
        (Storage("int4", 64, activations="fp8", algorithm="awq"), "groups of 64, .* groups of 128"),
    ],
)
def test_formats_that_tensorrt_llm_has_not(storage: Storage, message: str) -> None:
    with pytest.raises(UnsuitableError, match=f"o_proj .*{message}"):
        scheme_of(storage, "o_proj")


def test_groups_that_no_padding_can_save(released: Path, tmp_path: Path) -> None:
    """The inside of the MLPs is padded; the heads are what they are."""
    config = json.loads((released / "config.json").read_text())
    config["llm_config"] |= {"head_dim": 64}
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    tensors = read_shards(released)
    for name, tensor in tensors.items():
        if "_proj" in name and "self_attn" in name:
            rows = len(tensor) // 2 if "o_proj" not in name else len(tensor)
            tensors[name] = tensor[:rows] if "o_proj" not in name else tensor[:, :512].contiguous()
    save_file(tensors, narrow / "model.safetensors")
    (narrow / "config.json").write_text(json.dumps(config))
    write_quantized(narrow, tmp_path / "quantized", lambda _: STORAGES["W4A16_AWQ"])
    with pytest.raises(UnsuitableError, match=r"attention.dense has 64 inputs on each of 8 GPUs") as caught:
        plan(tmp_path / "quantized", tp=8)
    assert "inside of the MLPs" in str(caught.value.hint)
    assert plan(tmp_path / "quantized", tp=4).layout.intermediate == 512


def test_a_quantized_lm_head_is_refused(released: Path, tmp_path: Path) -> None:
    write_quantized(released, tmp_path / "quantized", lambda _: STORAGES["FP8"])
    path = tmp_path / "quantized" / "hf_quant_config.json"
    raw = json.loads(path.read_text())
    raw["quantization"]["exclude_modules"].remove("language_model.lm_head")
    path.write_text(json.dumps(raw))
    tensors = read_shards(tmp_path / "quantized")
    head = tensors["language_model.lm_head.weight"].to(torch.float8_e4m3fn)
    scales = {f"language_model.lm_head.{name}_scale": torch.tensor(0.5) for name in ("weight", "input")}
    tensors |= {"language_model.lm_head.weight": head, **scales}
    save_file(tensors, tmp_path / "quantized" / "model.safetensors")
    with pytest.raises(UnsuitableError, match="lm_head is fp8"):
        plan(tmp_path / "quantized")


def test_matrices_that_are_one_matrix_must_be_alike(released: Path, tmp_path: Path) -> None:
    def storage_of(module: str) -> Storage | None:
        return STORAGES["FP8"] if module.endswith("down_proj") else None

    write_quantized(released, tmp_path / "quantized", storage_of)
    path = tmp_path / "quantized" / "hf_quant_config.json"
    checkpoint = plan(tmp_path / "quantized")
    assert checkpoint.config["quantization"]["quant_algo"] == "FP8"
    tensors = read_shards(tmp_path / "quantized")
    stem = "language_model.model.layers.0.self_attn.q_proj"
    tensors[f"{stem}.weight"] = tensors[f"{stem}.weight"].to(torch.float8_e4m3fn)
    tensors |= {f"{stem}.{name}_scale": torch.tensor(0.5) for name in ("weight", "input")}
    save_file(tensors, tmp_path / "quantized" / "model.safetensors")
    raw = json.loads(path.read_text())
    raw["quantization"]["exclude_modules"].remove(stem)
    path.write_text(json.dumps(raw))
    with pytest.raises(UnsuitableError, match=r"q_proj and .* are stored differently"):
        plan(tmp_path / "quantized")


def mixed(module: str) -> Storage | None:
    if "layers.0." in module:
        return STORAGES["FP8"]
    return STORAGES["W4A16_AWQ"] if ".mlp." in module else None


def test_scales_that_fused_matrices_do_not_share(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, export: Export
) -> None:
    """ModelOpt's own unified checkpoints are such: their codes would have to be made anew."""
    apart = Path(shutil.copytree(make_checkpoint("FP8"), tmp_path / "apart"))
    tensors = read_shards(apart)
    tensors["language_model.model.layers.1.self_attn.k_proj.weight_scale"] /= 2
    save_file(tensors, apart / "model.safetensors")
    with pytest.raises(NvlmError, match=r"1.self_attn.q_proj.weight_scale: matrices that TensorRT-LLM fuses"):
        export(apart)


def test_layers_with_formats_of_their_own(released: Path, tmp_path: Path, export: Export) -> None:
    checkpoint = tmp_path / "mixed"
    write_quantized(released, checkpoint, mixed)
    output = export(checkpoint, tp=2)
    config = json.loads((output / "config.json").read_text())
    assert config["quantization"] == {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None}
    by_layer = json.loads((output / "quant_cfg.json").read_text())
    layers = by_layer["quantized_layers"]
    assert layers["transformer.layers.0.attention.qkv"] == {"quant_algo": "FP8"}
    assert layers["transformer.layers.1.mlp.proj"] == {
        "quant_algo": "W4A16_AWQ",
        "group_size": 128,
        "has_zero_point": False,
        "pre_quant_scale": True,
    }
    assert "transformer.layers.1.attention.qkv" not in layers
    names = {name for name, _ in TensorRtLlmReader(output).tensors()}
    assert "language_model.model.layers.1.mlp.down_proj.pre_quant_scale" in names
    load_tensorrt_llm_model(output)
    with pytest.raises(UnsuitableError, match="counts its layers from 0"):
        plan(checkpoint, pp=2)


def test_layers_that_are_kept_are_excluded(released: Path, tmp_path: Path) -> None:
    write_quantized(
        released,
        tmp_path / "kept",
        lambda m: None if m.endswith("down_proj") else STORAGES["W8A8_SQ_PER_CHANNEL"],
    )
    excluded = plan(tmp_path / "kept").config["quantization"]["exclude_modules"]
    assert excluded == ["lm_head", "transformer.layers.0.mlp.proj", "transformer.layers.1.mlp.proj"]


@pytest.mark.parametrize(
    ("algorithm", "group", "tp", "width"),
    [
        (None, 0, 8, 29568),
        ("FP8", 0, 8, 29568),
        ("W8A8_SQ_PER_CHANNEL", 0, 8, 29568),
        ("W4A16_AWQ", 128, 1, 29568),
        ("W4A16_AWQ", 128, 2, 29696),
        ("W4A16_AWQ", 128, 8, 29696),
        ("W4A16_AWQ", 64, 2, 29568),
        ("W4A16_AWQ", 64, 4, 29696),
        ("W4A8_AWQ", 128, 4, 29696),
        ("NVFP4", 16, 2, 29696),
    ],
)
def test_the_inner_width_of_the_72b(algorithm: str | None, group: int, tp: int, width: int) -> None:
    scheme = BY_NAME[algorithm] if algorithm else FLOAT
    assert padded_intermediate(29568, [Form(scheme, group)] * 3, tp) == width


def layout_72b(shared_data_dir: Path, form: Form, parallel: Parallel) -> Layout:
    language = NvlmConfig.from_file(shared_data_dir / "nvlm-d-72b.config.json").language
    forms = ({fused.name: form for fused in FUSED},) * language.num_layers
    width = padded_intermediate(language.intermediate_size, [form], parallel.tp)
    return Layout(language, parallel, forms, width, split_embedding=True, fp8_cache=False)


def test_the_72b_on_eight_gpus(shared_data_dir: Path) -> None:
    form = Form(BY_NAME["W4A16_AWQ"], 128, "source")
    layout = layout_72b(shared_data_dir, form, Parallel(tp=4, pp=2))
    sizes = dict.fromkeys(range(8), 0)
    for target, tensor in expected_tensors(layout, torch.bfloat16).items():
        sizes[rank_and_name(target)[0]] += tensor.nbytes
    # 4 bits and a scale of 4 bytes for 128 of them, in 40 layers of a quarter of the width.
    matrices = 8192 * (10240 + 8192 + 3 * 29696) // 4
    ends = 152064 * 8192 * 2 // 4
    for size in sizes.values():
        assert size == pytest.approx(40 * matrices * (0.5 + 4 / 128) + ends, rel=1e-3)
    config, _ = model_config(layout, "bfloat16", RELEASES["1.2"])
    assert {name: config[name] for name in ("architecture", "qwen_type", "head_size", "rotary_base")} == {
        "architecture": "Qwen2ForCausalLM",
        "qwen_type": "qwen2",
        "head_size": 128,
        "rotary_base": 1000000.0,
    }
    assert config["mapping"] == {"world_size": 8, "tp_size": 4, "pp_size": 2}
    assert (config["intermediate_size"], config["vocab_size"]) == (29696, 152064)


def test_what_kernels_and_loaders_do_not_take(shared_data_dir: Path) -> None:
    wide = layout_72b(shared_data_dir, Form(BY_NAME["W4A16_AWQ"], 64), Parallel())
    language = replace(wide.language, hidden_size=256, intermediate_size=29568)
    # 462 groups for 256 outputs: the loader of 0.12 tells by that whether scales are transposed.
    flat = replace(wide, language=language)
    check_divisible(flat, 0, RELEASES["1.2"])
    with pytest.raises(UnsuitableError, match=r"mlp.proj for transposed: 462 groups for 256 outputs"):
        check_divisible(flat, 0, RELEASES["0.12-jetson"])
    odd = replace(flat, language=replace(language, hidden_size=320), forms=({f.name: FP4 for f in FUSED},))
    with pytest.raises(UnsuitableError, match=r"attention.dense has 320 outputs, and NVFP4 .* 128") as caught:
        check_divisible(odd, 0, RELEASES["1.2"])
    assert "keep it in 16 bits" in str(caught.value.hint)


def test_the_configs_of_both_releases_differ_in_nothing_but_what_they_allow(released: Path) -> None:
    """Both read the same keys; what 0.12 does not know is refused before."""
    assert plan(released).config == plan(released, version="0.12-jetson").config
    assert set(plan(released).config["quantization"]) == {
        "quant_algo",
        "kv_cache_quant_algo",
        "exclude_modules",
    }


def test_a_number_beyond_fp16_stops_the_export(released: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(released, tmp_path / "broken"))
    (shard,) = broken.glob("*.safetensors")
    tensors = load_file(shard)
    tensors["language_model.model.layers.0.mlp.up_proj.weight"][3, 3] = 70000
    save_file(tensors, shard)
    checkpoint = plan(broken, dtype="float16")
    with pytest.raises(NvlmError, match=r"layers.0.mlp.gate.weight holds 70144, beyond .* float16"):
        checkpoint.run(no_progress)
    plan(broken).run(no_progress)


def test_a_stopped_run_goes_on_behind_its_last_layer(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, export: Export
) -> None:
    checkpoint = make_checkpoint("FP8")
    request = ExportRequest(checkpoint, tmp_path / "out", {"tp": 2})
    shares: list[float] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        if done > 0.8 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan_export("trtllm", request).run(interrupt)
    assert unfinished_directory(request.output).is_dir()
    plan_export("trtllm", request).run(lambda _stage, done, total: shares.append(done / total))
    assert shares == sorted(shares)
    assert 0.3 < shares[1] <= 0.9
    assert shares[-1] == 1
    whole = export(checkpoint, tp=2)
    for path in whole.iterdir():
        assert path.read_bytes() == (request.output / path.name).read_bytes(), path.name
    assert not unfinished_directory(request.output).exists()


def test_a_disk_that_is_too_small_is_found_before_any_work(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = plan(released).files.num_bytes
    usage = shutil.disk_usage(released)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=needed - 1))
    with pytest.raises(UnsuitableError, match="the files of the TensorRT-LLM checkpoint take"):
        plan(released)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lose", "rank1/transformer.layers.0.mlp.fc.weight is missing"),
        ("add", "rank1/transformer.layers.0.mlp.bc.weight is not part"),
        ("reshape", r"mlp.fc.weight is BF16 \[1, 49152\], but the configs ask for BF16 \[192, 256\]"),
        (
            "differ",
            "rank0/transformer.layers.0.input_layernorm.weight: the ranks hold different values",
        ),
        ("forget", "export.json lacks the key 'intermediate_size'"),
        ("file", "rank1.safetensors cannot be read"),
    ],
)
def test_a_broken_checkpoint_is_told_by_its_name(
    change: str, message: str, released: Path, export: Export
) -> None:
    output = export(released, tp=2)
    path = output / "rank1.safetensors"
    tensors = load_file(path)
    name = "transformer.layers.0.mlp.fc.weight"
    if change == "lose":
        del tensors[name]
    elif change == "add":
        tensors[name.replace("fc", "bc")] = torch.ones(1)
    elif change == "reshape":
        tensors[name] = tensors[name].reshape(1, -1)
    elif change == "differ":
        tensors["transformer.layers.0.input_layernorm.weight"][7] += 1
    elif change == "forget":
        (output / "export.json").write_text("{}")
    save_file(tensors, path)
    if change == "file":
        path.unlink()
    with pytest.raises(NvlmError, match=message):
        dict(TensorRtLlmReader(output).tensors())


def test_a_tied_head_is_written_for_the_last_stage(released: Path, tmp_path: Path, export: Export) -> None:
    tied = Path(shutil.copytree(released, tmp_path / "tied"))
    config = json.loads((tied / "config.json").read_text())
    config["llm_config"]["tie_word_embeddings"] = True
    (tied / "config.json").write_text(json.dumps(config))
    (tied / "model.safetensors.index.json").unlink()
    tensors = read_shards(tied)
    del tensors["language_model.lm_head.weight"]
    for shard in tied.glob("*.safetensors"):
        shard.unlink()
    save_file(tensors, tied / "model.safetensors")
    output = export(tied, pp=2)
    head = load_file(output / "rank1.safetensors")["lm_head.weight"]
    assert torch.equal(head, load_file(output / "rank0.safetensors")["transformer.vocab_embedding.weight"])
    assert load_tensorrt_llm_model(output).config.tie_word_embeddings


def test_a_llama_style_decoder_has_no_biases(tmp_path: Path, export: Export) -> None:
    config = model_config_of_shape()
    config["llm_config"] |= {"architectures": ["LlamaForCausalLM"], "attention_bias": False}
    write_random_checkpoint(config, tmp_path / "llama")
    output = export(tmp_path / "llama", tp=2)
    assert not any(name.endswith("bias") for name in load_file(output / "rank0.safetensors"))
    written = json.loads((output / "config.json").read_text())
    assert (written["architecture"], written["attn_bias"]) == ("LlamaForCausalLM", False)
    assert "qwen_type" not in written
    assert not load_tensorrt_llm_model(output).config.qkv_bias


def test_the_command(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(released), "--format", "trtllm", "--tp", "2", "-o", str(tmp_path / "out")]
    assert run([*words, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert run([*words, "--dry-run"]) == 0
    assert "2: TP 2 x PP 1" in capsys.readouterr().out
    assert run([*words, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["files"] == planned["files"]
    for name, size in written["files"].items():
        assert (tmp_path / "out" / name).stat().st_size == size
    assert run(words) == UsageError.exit_code
    assert (
        run(["export", str(released), "--format", "trt", "-o", str(tmp_path / "b")]) == UsageError.exit_code
    )
    assert "did you mean 'trtllm'?" in capsys.readouterr().err


def test_forms_of_groups_know_their_size() -> None:
    form = Form(BY_NAME["W4A16_AWQ"], 64)
    assert {tensor.inp for tensor in form.tensors} == {1, 64}
    assert form.storage == replace(BY_NAME["W4A16_AWQ"].storage, group_size=64)
