"""Export to the Megatron-core layout: the weight table of the import, inverted.

For training on with Megatron-LM. It writes one rank's file at a time, so the peak is one rank.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from nvlm_deploy.checkpoint.megatron import ITERATION_FILE, RANK_FILE
from nvlm_deploy.checkpoint.megatron_table import OUTPUT_LAYER, megatron_table, rank_prefix
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.checkpoint.rules import Rule
from nvlm_deploy.errors import NvlmError

# Megatron's default of --make-vocab-size-divisible-by, per tensor-parallel rank.
_VOCAB_MULTIPLE = 128

_LAYER = re.compile(r"^language_model\.decoder\.layers\.(\d+)\.")
_LAST_STAGE = (OUTPUT_LAYER, "language_model.decoder.final_layernorm.weight")


def export_megatron(
    source: Path, output: Path, tensor_parallel: int = 1, pipeline_parallel: int = 1, iteration: int = 1
) -> None:
    """Write a checkpoint in the released layout as `iter_*/mp_rank_TT[_PPP]/model_optim_rng.pt`.

    Tensors keep their dtype on disk; optimizer and random states are not part of it.

    Raises:
        NvlmError: the parallelism does not divide the model.
    """
    reader = CheckpointReader(source)
    language = reader.config.language
    if language.num_layers % pipeline_parallel:
        raise NvlmError(
            f"pipeline parallelism {pipeline_parallel} does not divide {language.num_layers} layers"
        )
    if language.tie_word_embeddings and pipeline_parallel > 1:
        raise NvlmError("a decoder with tied embeddings cannot be split into pipeline stages")
    multiple = _VOCAB_MULTIPLE * tensor_parallel
    padded_vocab = -(-language.vocab_size // multiple) * multiple
    rules = megatron_table(reader.config, tensor_parallel, padded_vocab).inverse().rules
    placement = _Placement(language.num_layers // pipeline_parallel, pipeline_parallel)
    args = argparse.Namespace(
        tensor_model_parallel_size=tensor_parallel,
        pipeline_model_parallel_size=pipeline_parallel,
        padded_vocab_size=padded_vocab,
    )
    directory = output / f"iter_{iteration:07}"
    for stage in range(pipeline_parallel):
        stage_rules = [rule for rule in rules if placement.stage(_plain_name(rule.targets[0])) == stage]
        for rank in range(tensor_parallel):
            suffix = f"_{stage:03}" if pipeline_parallel > 1 else ""
            path = directory / f"mp_rank_{rank:02}{suffix}" / RANK_FILE
            path.parent.mkdir(parents=True)
            state = _rank_state(reader, stage_rules, rank, placement)
            content = {"args": args, "checkpoint_version": 3.0, "iteration": iteration, "model": state}
            torch.save(content, path)
    (output / ITERATION_FILE).write_text(str(iteration), encoding="utf-8")


class _Placement:
    """Where the pipeline puts a tensor; all but the decoder's later parts is in the first stage."""

    def __init__(self, layers_per_stage: int, stages: int) -> None:
        self.layers_per_stage, self.stages = layers_per_stage, stages

    def stage(self, name: str) -> int:
        if match := _LAYER.match(name):
            return int(match[1]) // self.layers_per_stage
        return self.stages - 1 if name in _LAST_STAGE else 0

    def local_name(self, name: str) -> str:
        """The name with the layer counted from the stage's first."""

        def local(match: re.Match[str]) -> str:
            return f"language_model.decoder.layers.{int(match[1]) % self.layers_per_stage}."

        return _LAYER.sub(local, name)


def _rank_state(
    reader: CheckpointReader, rules: list[Rule], rank: int, placement: _Placement
) -> dict[str, torch.Tensor]:
    """One rank's tensors of one stage, each with memory of its own."""
    state = {}
    for rule in rules:
        tensors = rule.apply([reader.read(name) for name in rule.sources])
        for name, tensor in zip(rule.targets, tensors, strict=True):
            if name.startswith(rank_prefix(rank)):
                state[placement.local_name(_plain_name(name))] = tensor.clone(
                    memory_format=torch.contiguous_format
                )
    return state


def _plain_name(name: str) -> str:
    return name.partition("/")[2]
