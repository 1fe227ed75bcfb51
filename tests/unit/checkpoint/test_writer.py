"""Writing the released layout, held against the safetensors library and the golden checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.checkpoint.weight_table import expected_tensors, model_shapes
from nvlm_deploy.checkpoint.writer import ShardedWriter, copy_companion_files, save_model
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError

Tensors = dict[str, torch.Tensor]
INDEX = "model.safetensors.index.json"


def test_golden_checkpoint_rewritten_is_the_same(golden_dir: Path, tmp_path: Path) -> None:
    reader = CheckpointReader(golden_dir)
    # In reverse: the order of writing does not matter.
    with ShardedWriter(tmp_path, reader.config, max_shard_bytes=1_500_000) as writer:
        for name in reversed(reader.names()):
            writer.write(name, reader.read(name))
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards == [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    assert len(shards) == 4
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    golden_index = json.loads((golden_dir / INDEX).read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == golden_index["metadata"]["total_size"] == 4_537_280
    assert index["weight_map"].keys() == golden_index["weight_map"].keys()
    for shard in shards:
        tensors = load_file(tmp_path / shard)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 1_500_000
        assert set(tensors) == {name for name, place in index["weight_map"].items() if place == shard}
        for name, tensor in tensors.items():
            assert tensor.dtype == reader.info(name).dtype
            assert torch.equal(tensor, reader.read(name)), name


def test_model_state_round_trip(
    tmp_path: Path, raw_config: Callable[..., dict[str, Any]], config: NvlmConfig
) -> None:
    """BF16 values survive exactly, whatever the model's own dtype; dummy heads come back as zeros."""
    state = {
        name: torch.nn.Parameter(torch.randn(shape).bfloat16().float())
        for name, shape in model_shapes(config).items()
    }
    (tmp_path / "config.json").write_text(json.dumps(raw_config()), encoding="utf-8")
    save_model(state, config, tmp_path, max_shard_bytes=50_000)
    reader = CheckpointReader(tmp_path)
    weights = ModelWeights(reader)
    for name, tensor in state.items():
        assert torch.equal(weights.read(name, torch.float32), tensor), name
    qkv = reader.read("vision_model.encoder.layers.0.attn.qkv.weight")
    assert qkv.dtype == torch.float32
    assert not qkv.view(3, 32, 4, 100)[:, 25:].any()
    assert qkv.view(3, 32, 4, 100)[:, :25].any(dim=(2, 3)).all()


def test_transposed_and_large_tensors_are_written_in_pieces(
    tmp_path: Path, config: NvlmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvlm_deploy.checkpoint.safetensors_file._CHUNK_BYTES", 1000)
    tensor = torch.randn(64, 300).t()
    with pytest.raises(NvlmError, match="never written"), ShardedWriter(tmp_path, config) as writer:
        writer.write("language_model.lm_head.weight", tensor)
    (file,) = tmp_path.glob("*.safetensors")
    assert torch.equal(load_file(file)["language_model.lm_head.weight"], tensor.bfloat16())
    assert not (tmp_path / INDEX).exists()


def test_mistakes_are_named(tmp_path: Path, config: NvlmConfig) -> None:
    writer = ShardedWriter(tmp_path, config)
    with pytest.raises(NvlmError, match=r"no tensor mlp1\.2\.weight") as error:
        writer.write("mlp1.2.weight", torch.zeros(1))
    assert "mlp1.1.weight" in str(error.value.hint)
    with pytest.raises(NvlmError, match=r"mlp1\.0\.bias has the shape \[4\]; the config gives \[400\]"):
        writer.write("mlp1.0.bias", torch.zeros(4))
    writer.write("mlp1.0.bias", torch.zeros(400))
    with pytest.raises(NvlmError, match=r"mlp1\.0\.bias was written twice"):
        writer.write("mlp1.0.bias", torch.zeros(400))
    missing = len(expected_tensors(config)) - 1
    with pytest.raises(NvlmError, match=f"{missing} tensors were never written"):
        writer.close()


def test_no_index_after_an_exception(tmp_path: Path, config: NvlmConfig) -> None:
    with pytest.raises(KeyboardInterrupt), ShardedWriter(tmp_path, config):
        raise KeyboardInterrupt
    assert not (tmp_path / INDEX).exists()


def test_existing_shards_are_not_overwritten(tmp_path: Path, config: NvlmConfig) -> None:
    ShardedWriter(tmp_path, config)
    with pytest.raises(NvlmError, match=r"cannot write to .*: File exists"):
        ShardedWriter(tmp_path, config)


def test_too_little_space_is_known_before_writing(
    tmp_path: Path, config: NvlmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(free=1000))
    with pytest.raises(NvlmError, match=r"has 0\.0 GB free; the checkpoint takes"):
        ShardedWriter(tmp_path, config)
    assert not list(tmp_path.iterdir())


def test_save_model_checks_the_state(tmp_path: Path, config: NvlmConfig) -> None:
    state = {name: torch.zeros(shape) for name, shape in model_shapes(config).items()}
    with pytest.raises(NvlmError, match="the model's state: the tensor extra is not part"):
        save_model({**state, "extra": torch.zeros(1)}, config, tmp_path)
    misshapen = {**state, "projector.norm.bias": torch.zeros(3)}
    with pytest.raises(NvlmError, match=r"projector\.norm\.bias has the shape \[3\], expected \[400\]"):
        save_model(misshapen, config, tmp_path)
    del state["projector.norm.bias"]
    with pytest.raises(NvlmError, match=r"the tensor projector\.norm\.bias is missing"):
        save_model(state, config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_companion_files(tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    output.mkdir()
    with pytest.raises(NvlmError, match="has no tokenizer"):
        copy_companion_files(source, output)
    names = {"vocab.json", "merges.txt", "preprocessor_config.json", "modeling_nvlm_d.py"}
    for name in names:
        (source / name).write_text(name, encoding="utf-8")
    with pytest.raises(NvlmError, match=r"config\.json does not exist"):
        copy_companion_files(source, output)
    for name in ("config.json", "model.safetensors", "README.md"):
        (source / name).write_text(name, encoding="utf-8")
    copy_companion_files(source, output)
    assert {path.name for path in output.iterdir()} == {*names, "config.json"}
    assert (output / "merges.txt").read_text(encoding="utf-8") == "merges.txt"
