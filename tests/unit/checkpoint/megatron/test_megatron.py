"""The Megatron-core layout: an independent sharding imported, and round trips through the export."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nvlm_deploy.checkpoint.megatron import import_megatron
from nvlm_deploy.checkpoint.megatron_export import export_megatron
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError

Tensors = dict[str, torch.Tensor]
ReadAll = Callable[[Path], Tensors]


def assert_same(ours: Tensors, expected: Tensors) -> None:
    assert set(ours) == set(expected)
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize(
    ("tp", "stages"),
    [(tp, stages) for tp in (1, 2, 8) for stages in ([4], [1, 1, 1, 1])] + [(2, [1, 3])],
)
def test_import_of_an_independent_sharding(
    tmp_path: Path,
    output: Path,
    checkpoint: Path,
    config: NvlmConfig,
    read_all: ReadAll,
    write_megatron: Callable[..., Path],
    tp: int,
    stages: list[int],
) -> None:
    released = read_all(checkpoint)
    # The vocabulary of 300 is padded, as Megatron does.
    source = write_megatron(tmp_path / "megatron", released, config, tp, stages, padded_vocab=320)
    import_megatron(source, checkpoint, output, max_shard_bytes=100_000)
    assert_same(read_all(output), released)
    assert (output / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()
    assert (output / "tokenizer.json").exists()
    assert len(list(output.glob("*.safetensors"))) > 1


@pytest.mark.parametrize("pp", [1, 4])
@pytest.mark.parametrize("tp", [1, 2, 8])
def test_round_trip(
    tmp_path: Path, output: Path, checkpoint: Path, read_all: ReadAll, tp: int, pp: int
) -> None:
    export_megatron(checkpoint, tmp_path / "megatron", tp, pp)
    import_megatron(tmp_path / "megatron", checkpoint, output)
    assert_same(read_all(output), read_all(checkpoint))


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 4)])
def test_round_trip_of_the_golden_checkpoint(
    tmp_path: Path, output: Path, golden_dir: Path, read_all: ReadAll, tp: int, pp: int
) -> None:
    export_megatron(golden_dir, tmp_path / "megatron", tp, pp)
    import_megatron(tmp_path / "megatron", golden_dir, output)
    assert_same(read_all(output), read_all(golden_dir))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        assert (output / name).read_bytes() == (golden_dir / name).read_bytes()


def test_export_is_what_the_independent_sharder_makes(
    tmp_path: Path,
    checkpoint: Path,
    config: NvlmConfig,
    read_all: ReadAll,
    shard: Callable[..., Tensors],
) -> None:
    export_megatron(checkpoint, tmp_path / "megatron", tensor_parallel=8)
    for rank in range(8):
        path = tmp_path / f"megatron/iter_0000001/mp_rank_{rank:02}/model_optim_rng.pt"
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, weights_only=True)["model"]
        assert_same(state, shard(read_all(checkpoint), config, 8, rank, padded_vocab=1024, padding=0.0))
        # No tensor drags the memory of a larger one into the file.
        assert path.stat().st_size < 1.5 * sum(tensor.nbytes for tensor in state.values())


@pytest.mark.parametrize(
    "language",
    [{"architectures": ["LlamaForCausalLM"], "attention_bias": False}, {"tie_word_embeddings": True}],
    ids=["llama-style", "tied"],
)
def test_other_decoders(
    tmp_path: Path,
    output: Path,
    raw_config: Callable[..., dict[str, Any]],
    write_checkpoint: Callable[..., Path],
    write_megatron: Callable[..., Path],
    read_all: ReadAll,
    language: dict[str, Any],
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", raw_config(**language))
    config, released = NvlmConfig.from_directory(checkpoint), read_all(checkpoint)
    source = write_megatron(tmp_path / "megatron", released, config, 2, [2, 2], 300)
    import_megatron(source, checkpoint, output)
    assert_same(read_all(output), released)


def test_one_iteration_can_be_named(source: Path, checkpoint: Path, output: Path, read_all: ReadAll) -> None:
    import_megatron(source / "iter_0012000", checkpoint, output)
    assert_same(read_all(output), read_all(checkpoint))


def test_parallelism_that_does_not_divide(tmp_path: Path, golden_dir: Path) -> None:
    with pytest.raises(NvlmError, match="tensor parallelism 4 does not divide the vision heads"):
        export_megatron(golden_dir, tmp_path / "a", tensor_parallel=4)
    with pytest.raises(NvlmError, match="pipeline parallelism 3 does not divide 4 layers"):
        export_megatron(golden_dir, tmp_path / "b", pipeline_parallel=3)
