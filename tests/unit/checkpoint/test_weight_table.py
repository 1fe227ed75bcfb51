"""The weight table against the released model's index, and its operations both ways."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nvlm_deploy.checkpoint.operations import (
    Concat,
    Largest,
    Ones,
    Operation,
    Pad,
    Reinterpret,
    Replicate,
    Reshape,
    Shard,
    Slice,
    Transpose,
)
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.checkpoint.rules import Rule, RuleTable
from nvlm_deploy.checkpoint.summary import summarize
from nvlm_deploy.checkpoint.weight_table import (
    expected_tensors,
    model_shapes,
    model_table,
    released_tensors,
)
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def released_72b(shared_data_dir: Path) -> NvlmConfig:
    return NvlmConfig.from_file(shared_data_dir / "nvlm-d-72b.config.json")


def test_names_are_those_of_the_released_index(released_72b: NvlmConfig, shared_data_dir: Path) -> None:
    index = json.loads((shared_data_dir / "nvlm-d-72b.index.json").read_text(encoding="utf-8"))
    expected = expected_tensors(released_72b)
    assert len(expected) == 1556
    assert set(expected) == set(index["weight_map"])
    assert sum(math.prod(shape) for shape in expected.values()) == 79_379_593_344


def test_each_shard_of_the_index_has_its_released_size(
    released_72b: NvlmConfig, shared_data_dir: Path
) -> None:
    """Shapes and dtypes file by file: what remains of each file's size is its header."""
    index = json.loads((shared_data_dir / "nvlm-d-72b.index.json").read_text(encoding="utf-8"))
    data_bytes = dict.fromkeys(index["shard_bytes"], 0)
    counts = Counter(index["weight_map"].values())
    for tensor in released_tensors(released_72b):
        data_bytes[index["weight_map"][tensor.name]] += math.prod(tensor.shape) * tensor.dtype.itemsize
    assert sum(data_bytes.values()) == index["metadata"]["total_size"] == 176_901_927_168
    for shard, size in index["shard_bytes"].items():
        assert 100 * counts[shard] < size - data_bytes[shard] < 200 * counts[shard], shard


def test_summary_of_the_config_alone(released_72b: NvlmConfig) -> None:
    summary = summarize(released_72b)
    total, parts = summary.total, summary.parts
    assert (total.tensors, total.parameters, total.bytes) == (1556, 79_379_593_344, 176_901_927_168)
    assert total.model_parameters == 78_863_416_704
    assert len(summary.tensors) == 1556
    assert parts["language"].parameters == parts["language"].model_parameters == 72_706_203_648
    assert parts["projector"].parameters == parts["projector"].model_parameters == 620_717_056
    assert (parts["vision"].parameters, parts["vision"].model_parameters) == (6_052_672_640, 5_536_496_000)
    by_name = {tensor.name: tensor for tensor in summary.tensors}
    qkv = by_name["vision_model.encoder.layers.44.attn.qkv.weight"]
    assert (qkv.shape, qkv.dtype, qkv.part, qkv.shard) == ((12288, 3200), "F32", "vision", None)
    assert json.loads(json.dumps(summary.to_dict()))["total"]["tensors"] == 1556


def test_summary_of_a_checkpoint_reports_what_is_on_disk(golden_dir: Path) -> None:
    on_disk = summarize(CheckpointReader(golden_dir))
    promised = summarize(NvlmConfig.from_directory(golden_dir))
    assert on_disk.total == promised.total
    assert on_disk.total.bytes == 4_537_280
    assert {tensor.shard for tensor in on_disk.tensors} == {
        f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)
    }


def test_model_names_and_shapes(config: NvlmConfig) -> None:
    shapes = model_shapes(config)
    assert shapes["vision.class_embedding"] == (100,)
    assert shapes["vision.position_embedding"] == (17, 100)
    assert shapes["vision.patch_embedding.weight"] == (100, 3, 14, 14)
    assert shapes["vision.layers.1.attention.v_proj.weight"] == (100, 100)
    assert shapes["vision.layers.1.attention.q_norm.weight"] == (100,)
    assert shapes["vision.layers.1.attention.out_proj.weight"] == (100, 100)
    assert shapes["projector.fc1.weight"] == (48, 400)
    assert shapes["language.layers.3.attention.k_proj.bias"] == (32,)
    assert shapes["language.lm_head.weight"] == (300, 64)


@pytest.mark.parametrize(
    ("language", "absent"),
    [
        pytest.param(
            {"architectures": ["LlamaForCausalLM"], "attention_bias": False},
            "language_model.model.layers.0.self_attn.q_proj.bias",
            id="llama-style has no biases",
        ),
        pytest.param({"tie_word_embeddings": True}, "language_model.lm_head.weight", id="tied"),
    ],
)
def test_other_decoders_go_through_the_same_table(
    raw_config: Callable[..., dict[str, Any]],
    random_tensors: Callable[[NvlmConfig], Tensors],
    language: dict[str, Any],
    absent: str,
) -> None:
    config = NvlmConfig.from_dict(raw_config(**language))
    assert absent in expected_tensors(NvlmConfig.from_dict(raw_config()))
    assert absent not in expected_tensors(config)
    _check_both_ways(config, random_tensors(config))


def test_model_table_inverts(config: NvlmConfig, random_tensors: Callable[[NvlmConfig], Tensors]) -> None:
    _check_both_ways(config, random_tensors(config))


def _check_both_ways(config: NvlmConfig, released: Tensors) -> None:
    table = model_table(config)
    model = dict(table.convert(released.__getitem__))
    assert {name: tuple(tensor.shape) for name, tensor in model.items()} == model_shapes(config)
    back = dict(table.inverse().convert(model.__getitem__))
    assert set(back) == set(released)
    for name, tensor in released.items():
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (Concat(1, (2, 3)), [(4, 2), (4, 3)]),
        (Slice(0, 1, 3, 3), [(3, 2)]),
        (Reshape((2, 6), (3, 4)), [(2, 6)]),
        (Transpose(0, 1), [(2, 3)]),
        (Replicate(3), [(2, 3)]),
        (Shard(0, (8, 4, 4), (4, 2, 2), 4), [(8, 3), (4, 3), (4, 3)]),
        (Shard(1, (6,), (3,), 3), [(2, 6)]),
        (Shard(0, (5,), (1,), 2), [(5,)]),
        (Pad(1, 0, 3, 5, fill=1.0), [(2, 3)]),
        (Reinterpret(torch.float32, torch.int32), [(2, 3)]),
        (Ones(4), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_operations_invert(operation: Operation, shapes: list[tuple[int, ...]]) -> None:
    tensors = tuple(torch.randn(shape) for shape in shapes)
    if isinstance(operation, Slice):
        tensors[0][0] = 0
    there = operation.apply(tensors)
    back = operation.inverse().apply(there)
    assert all(torch.equal(a, b) for a, b in zip(tensors, back, strict=True))
    again = operation.inverse().inverse().apply(tensors)
    assert all(torch.equal(a, b) for a, b in zip(there, again, strict=True))
    meta = operation.apply(tuple(tensor.to("meta") for tensor in tensors))
    assert [tensor.shape for tensor in meta] == [tensor.shape for tensor in there]


def test_shards_of_ranks_that_share_a_piece() -> None:
    """Four ranks, eight query rows, two KV rows: the first two ranks have the first KV row."""
    query, keys = torch.arange(8), torch.tensor([10, 20])
    shards = Shard(0, (8, 2), (4, 2), 4).apply((query, keys))
    assert [shard.tolist() for shard in shards] == [[0, 1, 10], [2, 3, 10], [4, 5, 20], [6, 7, 20]]


def test_the_largest_is_no_less_than_the_floor() -> None:
    operation = Largest(2, 1.0)
    assert operation.apply((torch.tensor([0.5, 3.0]), torch.tensor([0.25, 4.0])))[0].tolist() == [1.0, 4.0]
    assert [t.tolist() for t in operation.inverse().apply((torch.tensor([4.0]),))] == [[4.0]] * 2


def test_ones_that_are_none_are_an_error() -> None:
    with pytest.raises(NvlmError, match="should all be one"):
        Ones(2).inverse().apply((torch.tensor([1.0, 2.0]),))


def test_ranks_that_disagree_are_an_error() -> None:
    rule = Rule(("rank0/a", "rank1/a"), ("b",), (Replicate(2).inverse(),))
    tensors = {"rank0/a": torch.zeros(2), "rank1/a": torch.ones(2)}
    with pytest.raises(NvlmError, match="rank0/a: the ranks hold different values"):
        list(RuleTable([rule]).convert(tensors.__getitem__))


def test_table_is_total() -> None:
    table = RuleTable([Rule(("a.weight",), ("b.weight",))], drops=("*.inv_freq",))
    table.check_sources(["a.weight", "x.inv_freq"], "here")
    with pytest.raises(NvlmError, match=r"here: the tensor a\.wieght is not part") as error:
        table.check_sources(["a.wieght"], "here")
    assert error.value.hint == "did you mean 'a.weight'?"
    with pytest.raises(NvlmError, match=r"here: the tensor a\.weight is missing"):
        table.check_sources([], "here")


def test_two_rules_may_not_claim_one_tensor() -> None:
    with pytest.raises(ValueError, match="two rules claim a"):
        RuleTable([Rule(("a",), ("b",)), Rule(("a",), ("c",))])
