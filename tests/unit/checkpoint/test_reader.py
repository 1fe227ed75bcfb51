"""Reading the released layout: values, memory, and every way in which a checkpoint can be broken."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.checkpoint.safetensors_file import build_header
from nvlm_deploy.checkpoint.weight_table import model_table, released_tensors
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import cross_style_config, released_style_config
from tests.conftest import TINY_SHAPE

Tensors = dict[str, torch.Tensor]
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_every_tensor_equals_the_safetensors_library(golden_dir: Path) -> None:
    reader = CheckpointReader(golden_dir)
    for name in reader.names():
        info = reader.info(name)
        with safe_open(golden_dir / info.shard, "pt") as file:
            expected = file.get_tensor(name)
        tensor = reader.read(name)
        assert tensor.dtype == info.dtype == expected.dtype
        assert torch.equal(tensor, expected), name
        assert torch.equal(reader.read_rows(name, 0, 1), expected[:1])
        assert torch.equal(reader.read(name, torch.float32), expected.float())


def test_rows_and_casts(checkpoint: Path) -> None:
    reader = CheckpointReader(checkpoint)
    name = "language_model.model.embed_tokens.weight"
    whole = reader.read(name)
    assert whole.dtype == torch.bfloat16
    assert torch.equal(reader.read_rows(name, 7, 300), whole[7:300])
    assert torch.equal(reader.read_rows(name, 7, 9, torch.float16), whole[7:9].half())
    with pytest.raises(IndexError, match="elements"):
        reader.read_rows(name, 7, 301)


def test_casts_span_pieces(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvlm_deploy.checkpoint.safetensors_file._CHUNK_BYTES", 1000)
    reader = CheckpointReader(checkpoint)
    name = "mlp1.1.weight"
    whole = load_file(checkpoint / reader.info(name).shard)[name]
    assert torch.equal(reader.read(name, torch.float32), whole.float())
    assert torch.equal(reader.read(name), whole)


def test_one_unnumbered_file_needs_no_index(
    checkpoint: Path, random_tensors: Callable[..., Tensors], config: NvlmConfig
) -> None:
    for path in checkpoint.glob("model*"):
        path.unlink()
    tensors = random_tensors(config)
    save_file(tensors, checkpoint / "model.safetensors")
    reader = CheckpointReader(checkpoint)
    assert torch.equal(reader.read("mlp1.3.weight"), tensors["mlp1.3.weight"])


def test_recomputed_buffers_are_dropped(
    tmp_path: Path,
    raw_config: Callable[..., dict[str, Any]],
    random_tensors: Callable[..., Tensors],
    write_checkpoint: Callable[..., Path],
) -> None:
    raw = raw_config()
    tensors = random_tensors(NvlmConfig.from_dict(raw))
    tensors[dropped := "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    assert dropped not in CheckpointReader(write_checkpoint(tmp_path / "c", raw, tensors)).names()


def test_model_weights_slice_the_dummy_heads_away(checkpoint: Path) -> None:
    reader = CheckpointReader(checkpoint)
    weights = ModelWeights(reader)
    layer = "vision_model.encoder.layers.1.attn."
    qkv, proj = reader.read(layer + "qkv.weight"), reader.read(layer + "proj.weight")
    ours = "vision.layers.1.attention."
    for start, part in ((0, "q"), (128, "k"), (256, "v")):
        assert torch.equal(weights.read(f"{ours}{part}_proj.weight"), qkv[start : start + 100])
    assert torch.equal(weights.read(ours + "out_proj.weight"), proj[:, :100])
    assert torch.equal(weights.read(ours + "k_norm.weight"), reader.read(layer + "k_norm.weight")[:100])
    assert torch.equal(weights.read_rows(ours + "v_proj.weight", 10, 20), qkv[266:276])
    assert torch.equal(weights.read_rows(ours + "out_proj.weight", 99, 100), proj[99:, :100])
    assert weights.read(ours + "out_proj.weight").is_contiguous()
    with pytest.raises(IndexError, match="100 rows"):
        weights.read_rows(ours + "v_proj.weight", 90, 101)


def test_model_weights_equal_the_rules_for_every_parameter(checkpoint: Path) -> None:
    reader = CheckpointReader(checkpoint)
    weights = ModelWeights(reader)
    expected = dict(model_table(reader.config).convert(reader.read))
    assert weights.names() == tuple(expected)
    for name, tensor in expected.items():
        assert weights.shape(name) == tensor.shape
        assert torch.equal(weights.read(name), tensor), name
        rows = len(tensor)
        halves = [weights.read_rows(name, 0, rows // 2), weights.read_rows(name, rows // 2, rows)]
        assert torch.equal(torch.cat(halves), tensor), name


def test_unknown_names_suggest_the_nearest(checkpoint: Path) -> None:
    reader = CheckpointReader(checkpoint)
    with pytest.raises(NvlmError, match=r"no tensor mlp1\.4\.weight") as error:
        reader.read("mlp1.4.weight")
    assert "mlp1.3.weight" in str(error.value.hint)
    with pytest.raises(NvlmError, match=r"no parameter projector\.fc3\.weight") as error:
        ModelWeights(reader).read("projector.fc3.weight")
    assert "projector.fc1.weight" in str(error.value.hint)


def test_dummy_heads_must_not_matter(
    tmp_path: Path,
    raw_config: Callable[..., dict[str, Any]],
    random_tensors: Callable[..., Tensors],
    write_checkpoint: Callable[..., Path],
) -> None:
    raw = raw_config()
    tensors = random_tensors(NvlmConfig.from_dict(raw))
    layer = "vision_model.encoder.layers.1.attn."
    tensors[layer + "qkv.weight"][-1] = 1.0
    harmless = write_checkpoint(tmp_path / "harmless", raw, tensors)
    ModelWeights(CheckpointReader(harmless)).verify_dummy_heads()
    tensors[layer + "proj.weight"][0, -1] = 1.0
    harmful = write_checkpoint(tmp_path / "harmful", raw, tensors)
    with pytest.raises(NvlmError, match=r"layers\.1\.attn\.qkv\.weight are not zero"):
        ModelWeights(CheckpointReader(harmful)).verify_dummy_heads()


def test_golden_dummy_heads_are_zero(golden_dir: Path) -> None:
    ModelWeights(CheckpointReader(golden_dir)).verify_dummy_heads()


def test_fingerprint_follows_config_and_weights(
    tmp_path: Path,
    checkpoint: Path,
    raw_config: Callable[..., dict[str, Any]],
    random_tensors: Callable[..., Tensors],
    write_checkpoint: Callable[..., Path],
) -> None:
    raw = raw_config()
    original = CheckpointReader(checkpoint).fingerprint()
    assert CheckpointReader(write_checkpoint(tmp_path / "same", raw)).fingerprint() == original
    retrained = random_tensors(NvlmConfig.from_dict(raw), seed=1)
    other = write_checkpoint(tmp_path / "retrained", raw, retrained)
    assert CheckpointReader(other).fingerprint() != original
    scaled = raw_config(rope_theta=5e6)
    assert CheckpointReader(write_checkpoint(tmp_path / "scaled", scaled)).fingerprint() != original


def _edit_index(directory: Path, edit: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    edit(index["weight_map"])
    (directory / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _edit_shard(directory: Path, shard: str, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(directory / shard)
    edit(tensors)
    save_file(tensors, directory / shard)


def _rename(directory: Path) -> None:
    def edit(entries: dict[str, Any]) -> None:
        entries["mlp1.3.wieght"] = entries.pop("mlp1.3.weight")

    _edit_shard(directory, FIRST, edit)
    _edit_index(directory, edit)


def _remove(directory: Path) -> None:
    _edit_shard(directory, FIRST, lambda tensors: tensors.pop("language_model.model.norm.weight"))
    _edit_index(directory, lambda index: index.pop("language_model.model.norm.weight"))


def _truncate(directory: Path, size: int) -> None:
    data = (directory / FIRST).read_bytes()
    (directory / FIRST).write_bytes(data[:size])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda d: (d / SECOND).unlink(), rf"the shard .*{SECOND} is missing"),
    "missing config": (lambda d: (d / "config.json").unlink(), r"config\.json does not exist"),
    "no weights": (lambda d: (d / INDEX).unlink(), "has neither model.safetensors.index.json nor"),
    "empty shard": (lambda d: _truncate(d, 0), rf"{FIRST} is truncated: it has 0 bytes"),
    "header cut": (lambda d: _truncate(d, 100), rf"{FIRST} is truncated: it has 100 bytes"),
    "data cut": (lambda d: _truncate(d, -1), rf"{FIRST} is truncated"),
    "trailing bytes": (
        lambda d: (d / FIRST).write_bytes((d / FIRST).read_bytes() + b"x"),
        "1 bytes behind its last tensor",
    ),
    "no safetensors": (lambda d: (d / FIRST).write_bytes(b"PK\x03\x04" * 4), "is not a safetensors file"),
    "header no JSON": (
        lambda d: (d / FIRST).write_bytes(struct.pack("<Q", 4) + b"{{{{"),
        f"{FIRST} is not a safetensors file",
    ),
    "wrong shape": (
        lambda d: _edit_shard(
            d, FIRST, lambda t: t.update({"mlp1.0.bias": torch.zeros(399, dtype=torch.bfloat16)})
        ),
        rf"{FIRST}: mlp1\.0\.bias has the shape \[399\], but config\.json gives \[400\]",
    ),
    "unknown dtype": (
        lambda d: _edit_shard(d, FIRST, lambda t: t.update({"mlp1.0.bias": torch.zeros(400).char()})),
        r"mlp1\.0\.bias has the dtype 'I8'; supported: F32, F16, BF16",
    ),
    "unknown tensor": (_rename, r"the tensor mlp1\.3\.wieght is not part of this model"),
    "missing tensor": (_remove, r"the tensor language_model\.model\.norm\.weight is missing"),
    "index names an absent tensor": (
        lambda d: _edit_index(d, lambda index: index.update({"mlp1.3.bias": FIRST})),
        rf"puts mlp1\.3\.bias in .*{FIRST}, which does not hold it",
    ),
    "tensor not in the index": (
        lambda d: _edit_index(d, lambda index: index.pop("mlp1.3.weight")),
        r"holds mlp1\.3\.weight, but model\.safetensors\.index\.json does not name it",
    ),
    "index names another shard": (
        lambda d: _edit_index(d, lambda index: index.update({"mlp1.3.weight": SECOND})),
        rf"{FIRST} holds mlp1\.3\.weight, but .* puts it in {SECOND}",
    ),
    "index leads elsewhere": (
        lambda d: _edit_index(d, lambda index: index.update({"mlp1.3.weight": "../x.safetensors"})),
        "no file name in this directory",
    ),
    "index no JSON": (lambda d: (d / INDEX).write_text("{"), f"{INDEX} cannot be read"),
    "index without map": (lambda d: (d / INDEX).write_text("{}"), f"{INDEX} has no weight_map"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints_are_refused(checkpoint: Path, case: str) -> None:
    damage, message = BROKEN[case]
    CheckpointReader(checkpoint)
    damage(checkpoint)
    with pytest.raises(NvlmError, match=message) as error:
        CheckpointReader(checkpoint)
    if case == "unknown tensor":
        assert "mlp1.3.weight" in str(error.value.hint)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2]}, "malformed"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "malformed"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "takes 8 bytes"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "begins at byte"),
        ("nothing", "malformed"),
    ],
)
def test_inconsistent_headers_are_refused(checkpoint: Path, entry: object, message: str) -> None:
    header = json.dumps({"mlp1.0.bias": entry}).encode()
    (checkpoint / FIRST).write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(NvlmError, match=message):
        CheckpointReader(checkpoint)


def test_a_file_cut_while_in_use_is_an_error(checkpoint: Path) -> None:
    reader = CheckpointReader(checkpoint)
    _truncate(checkpoint, 5000)
    with pytest.raises(NvlmError, match=r"ends inside mlp1\.3\.weight"):
        reader.read("mlp1.3.weight")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_memory_is_bounded_by_one_tensor(tmp_path: Path, raw_config: Callable[..., dict[str, Any]]) -> None:
    """All of one large file is read; the file has holes and takes no disk."""
    raw = raw_config(vocab_size=64_000, hidden_size=256, num_hidden_layers=32)
    raw["llm_config"]["intermediate_size"] = 4096
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    rows = released_tensors(NvlmConfig.from_dict(raw))
    header = build_header([(row.name, row.dtype, row.shape) for row in rows])
    sizes = [row.dtype.itemsize * torch.Size(row.shape).numel() for row in rows]
    assert sum(sizes) > 250 * 2**20
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(sizes))
    weights = ModelWeights(CheckpointReader(tmp_path))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the peak to the present
    before = _status_bytes("VmRSS")
    for name in weights.names():
        weights.read(name)
    assert _status_bytes("VmHWM") - before < max(sizes) + 24 * 2**20


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition(field + ":")[2].split()[0])


def test_variants_that_are_taken_for_each_other(tmp_path: Path) -> None:
    write_random_checkpoint(released_style_config(TINY_SHAPE), tmp_path / "d")
    write_random_checkpoint(cross_style_config(TINY_SHAPE, "X", [0]), tmp_path / "x")
    for name in ("d", "x"):
        shutil.copyfile(tmp_path / name / "config.json", tmp_path / f"{name}.json")
    shutil.copyfile(tmp_path / "x.json", tmp_path / "d" / "config.json")
    with pytest.raises(NvlmError, match="these are the weights of an NVLM-D") as caught:
        CheckpointReader(tmp_path / "d")
    assert "convert --variant X" in str(caught.value.hint)
    shutil.copyfile(tmp_path / "d.json", tmp_path / "x" / "config.json")
    with pytest.raises(NvlmError, match=r"has tensors of cross-attention, but its config.json says NVLM-D"):
        CheckpointReader(tmp_path / "x")
