"""An independent sharder: the released layout taken apart as Megatron-core stores it, loop by loop."""

from __future__ import annotations

import argparse
import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.config.model import NvlmConfig

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "output"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def shard() -> Callable[..., Tensors]:
    """Takes (released tensors, config, tp, rank, padded_vocab), gives one rank's tensors of all stages."""
    return _shard


@pytest.fixture(scope="session")
def write_megatron() -> Callable[..., Path]:
    """Takes (directory, released tensors, config, tp, layers of each stage, padded_vocab)."""
    return _write_megatron


@pytest.fixture(scope="session")
def read_all() -> Callable[[Path], Tensors]:
    """Reads all tensors of a checkpoint in the released layout."""
    return _read_all


@pytest.fixture(scope="session")
def pristine_source(tmp_path_factory: pytest.TempPathFactory, pristine_checkpoint: Path) -> Path:
    directory = tmp_path_factory.mktemp("pristine") / "megatron"
    config = NvlmConfig.from_directory(pristine_checkpoint)
    return _write_megatron(directory, _read_all(pristine_checkpoint), config, 2, [2, 2], 304)


@pytest.fixture
def source(tmp_path: Path, pristine_source: Path) -> Path:
    """The small checkpoint as Megatron would have it, TP 2 x PP 2."""
    return Path(shutil.copytree(pristine_source, tmp_path / "megatron"))


def _read_all(directory: Path) -> Tensors:
    reader = CheckpointReader(directory)
    return {name: reader.read(name) for name in reader.names()}


def _shard(
    released: Tensors, config: NvlmConfig, tp: int, rank: int, padded_vocab: int, padding: float = 9.0
) -> Tensors:
    """One rank's tensors before the split into stages, gathered head by head as Megatron has them."""

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.chunk(tp, dim=0)[rank]

    def columns(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.chunk(tp, dim=1)[rank]

    state = {
        "vision_model.class_token": released["vision_model.embeddings.class_embedding"],
        "vision_model.position_embeddings.weight": released["vision_model.embeddings.position_embedding"][0],
        "vision_model.conv1.weight": released["vision_model.embeddings.patch_embedding.weight"],
        "vision_model.conv1.bias": released["vision_model.embeddings.patch_embedding.bias"],
        "vision_projection.encoder.linear_fc1.layer_norm_weight": released["mlp1.0.weight"],
        "vision_projection.encoder.linear_fc1.layer_norm_bias": released["mlp1.0.bias"],
        "vision_projection.encoder.linear_fc1.weight": rows(released["mlp1.1.weight"]),
        "vision_projection.encoder.linear_fc2.weight": columns(released["mlp1.3.weight"]),
        "language_model.decoder.final_layernorm.weight": released["language_model.model.norm.weight"],
    }
    tables = {"embedding.word_embeddings": "model.embed_tokens", "output_layer": "lm_head"}
    for name, source in tables.items():
        table = released.get(f"language_model.{source}.weight")
        if table is not None:
            rest = torch.full((padded_vocab - len(table), table.shape[1]), padding, dtype=table.dtype)
            state[f"language_model.{name}.weight"] = rows(torch.cat([table, rest]))
    for n in range(config.vision.num_layers):
        state.update(_vision_layer(released, config, n, tp, rank))
    for n in range(config.language.num_layers):
        state.update(_language_layer(released, config, n, tp, rank))
    return state


def _vision_layer(released: Tensors, config: NvlmConfig, n: int, tp: int, rank: int) -> Tensors:
    source, target, dim = (
        f"vision_model.encoder.layers.{n}.",
        f"vision_model.decoder.layers.{n}.",
        config.vision.head_dim,
    )
    q, k, v = released[source + "attn.qkv.weight"].chunk(3)
    num_heads = len(q) // dim
    per_rank = num_heads // tp
    fused = []
    for head in range(rank * per_rank, (rank + 1) * per_rank):
        fused += [part[head * dim : (head + 1) * dim] for part in (q, k, v)]
    split = {
        "self_attention.q_layernorm.weight": (0, "attn.q_norm.weight"),
        "self_attention.k_layernorm.weight": (0, "attn.k_norm.weight"),
        "self_attention.linear_proj.weight": (1, "attn.proj.weight"),
        "mlp.linear_fc1.weight": (0, "mlp.fc1.weight"),
        "mlp.linear_fc1.bias": (0, "mlp.fc1.bias"),
        "mlp.linear_fc2.weight": (1, "mlp.fc2.weight"),
    }
    same = {
        "input_layernorm.weight": "norm1.weight",
        "pre_mlp_layernorm.weight": "norm2.weight",
        "self_attention.linear_proj.bias": "attn.proj.bias",
        "mlp.linear_fc2.bias": "mlp.fc2.bias",
        "ls1": "ls1",
        "ls2": "ls2",
    }
    return {
        target + "self_attention.linear_qkv.weight": torch.cat(fused),
        **{target + ours: released[source + theirs] for ours, theirs in same.items()},
        **{
            target + ours: released[source + theirs].chunk(tp, along)[rank]
            for ours, (along, theirs) in split.items()
        },
    }


def _language_layer(released: Tensors, config: NvlmConfig, n: int, tp: int, rank: int) -> Tensors:
    source, target, language = (
        f"language_model.model.layers.{n}.",
        f"language_model.decoder.layers.{n}.",
        config.language,
    )
    dim, groups = language.head_dim, language.num_kv_heads
    heads_per_group = language.num_heads // groups
    state = {
        target + "self_attention.linear_qkv.layer_norm_weight": released[source + "input_layernorm.weight"],
        target + "mlp.linear_fc1.layer_norm_weight": released[source + "post_attention_layernorm.weight"],
        target + "self_attention.linear_proj.weight": released[source + "self_attn.o_proj.weight"].chunk(
            tp, 1
        )[rank],
        target + "mlp.linear_fc2.weight": released[source + "mlp.down_proj.weight"].chunk(tp, 1)[rank],
        target + "mlp.linear_fc1.weight": torch.cat(
            [released[source + f"mlp.{part}_proj.weight"].chunk(tp)[rank] for part in ("gate", "up")]
        ),
    }
    for kind in ("weight", "bias") if language.qkv_bias else ("weight",):
        q, k, v = (released[source + f"self_attn.{part}_proj.{kind}"] for part in "qkv")
        fused = []
        for group in range(rank * groups // tp, (rank + 1) * groups // tp):
            for head in range(group * heads_per_group, (group + 1) * heads_per_group):
                fused.append(q[head * dim : (head + 1) * dim])
            fused += [part[group * dim : (group + 1) * dim] for part in (k, v)]
        state[target + f"self_attention.linear_qkv.{kind}"] = torch.cat(fused)
    return state


def _write_megatron(
    directory: Path, released: Tensors, config: NvlmConfig, tp: int, stages: list[int], padded_vocab: int
) -> Path:
    """Write all ranks as Megatron's trainer does, random states and arguments included.

    `stages` are the decoder layers of each pipeline stage.
    """
    suffixes = [f"_{stage:03}" for stage in range(len(stages))] if len(stages) > 1 else [""]
    for rank in range(tp):
        state = _shard(released, config, tp, rank, padded_vocab)
        for stage, suffix in enumerate(suffixes):
            path = directory / "iter_0012000" / f"mp_rank_{rank:02}{suffix}" / "model_optim_rng.pt"
            path.parent.mkdir(parents=True)
            torch.save(_rank_content(_stage_state(state, stages, stage), tp, rank == stage == 0), path)
    (directory / "latest_checkpointed_iteration.txt").write_text("12000\n", encoding="utf-8")
    return directory


def _stage_state(state: Tensors, stages: list[int], stage: int) -> dict[str, Any]:
    first, last = sum(stages[:stage]), stage == len(stages) - 1
    part: dict[str, Any] = {"language_model.rotary_pos_emb.inv_freq": torch.ones(2)}
    for name, tensor in state.items():
        prefix, is_layer, rest = name.partition("language_model.decoder.layers.")
        if is_layer and not prefix:
            number, _, tail = rest.partition(".")
            if first <= int(number) < first + stages[stage]:
                local = f"{is_layer}{int(number) - first}.{tail}"
                part[local] = tensor.clone()
                part[local.rpartition(".")[0] + "._extra_state"] = None
        elif last if "final_layernorm" in name or "output_layer" in name else stage == 0:
            part[name] = tensor.clone()
    if last and "language_model.output_layer.weight" not in part:
        # Tied: the last stage keeps a copy of its own.
        part["language_model.output_layer.weight"] = state[
            "language_model.embedding.word_embeddings.weight"
        ].clone()
    part["language_model.decoder.final_layernorm._extra_state"] = io.BytesIO(b"fp8")
    return part


def _rank_content(state: dict[str, Any], tp: int, with_random_state: bool) -> dict[str, Any]:
    content = {
        "args": argparse.Namespace(tensor_model_parallel_size=tp, params_dtype=torch.bfloat16),
        "checkpoint_version": 3.0,
        "iteration": 12000,
        "model": state,
    }
    if with_random_state:
        np_state = np.random.RandomState(1).get_state()
        content["rng_state"] = [{"random_rng_state": random.Random(1).getstate(), "np_rng_state": np_state}]
    return content
