"""Runs: numbers that do not fit, interruptions, files that are broken afterwards, the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_deploy.cli.main import run
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.export.tensorrt_llm import (
    TensorRtLlmReader,
    load_tensorrt_llm_model,
)
from nvlm_deploy.pipeline.export import ExportRequest, plan_export
from nvlm_deploy.pipeline.resumable import unfinished_directory
from nvlm_deploy.progress import no_progress
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint

from .conftest import Export, MakeCheckpoint, read_shards
from .conftest import model_config as model_config_of_shape


def plan(checkpoint: Path, **options: Any) -> Any:
    return plan_export("trtllm", ExportRequest(checkpoint, checkpoint.parent / "never", options))


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
