"""Checkpoints with random weights, in the released layout: for benchmarks and tests of size and speed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nvlm_deploy.checkpoint.weight_table import ReleasedTensor, released_tensors
from nvlm_deploy.checkpoint.writer import DEFAULT_SHARD_BYTES, ShardedWriter
from nvlm_deploy.config.model import NvlmConfig

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>")

_DEVIATION = 0.02
_LAYER_SCALE = 0.1
# A new model's gates are closed; with random weights they are half open, so that tiles are seen.
_GATE = 0.5


def write_random_checkpoint(
    config: Mapping[str, Any], directory: Path, seed: int = 0, max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> None:
    """Write a complete checkpoint with random weights into `directory`, which is made.

    Weights are normal with deviation 0.02, norms are near one, dummy heads are zero, gates are half open. The
    tokenizer has one token per byte, and the special tokens of the chat template.

    Args:
        config: a `config.json` object, for example of `shapes.released_style_config`.
        seed: equal seeds give equal bytes.
        max_shard_bytes: size at which a shard is full.
    """
    parsed = NvlmConfig.from_dict(config)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    generator = torch.Generator().manual_seed(seed)
    with ShardedWriter(directory, parsed, max_shard_bytes) as writer:
        for tensor in released_tensors(parsed):
            writer.write(tensor.name, _random_tensor(tensor, parsed, generator))


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer with one token per byte, and the special tokens of the chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS]
    )
    return tokenizer


def _random_tensor(tensor: ReleasedTensor, config: NvlmConfig, generator: torch.Generator) -> torch.Tensor:
    values = torch.empty(tensor.shape)
    if tensor.name.endswith((".ls1", ".ls2")):
        return values.fill_(_LAYER_SCALE)
    if tensor.name.endswith("_gate"):
        return values.fill_(_GATE)
    values.normal_(0, _DEVIATION, generator=generator)
    if "norm" in tensor.name and tensor.name.endswith(".weight"):
        values += 1
    return _without_dummy_heads(tensor.name, values, config)


def _without_dummy_heads(name: str, values: torch.Tensor, config: NvlmConfig) -> torch.Tensor:
    width, padded = config.vision.hidden_size, config.vision.padded_hidden_size
    if name.endswith("attn.qkv.weight"):
        values.view(3, padded, -1)[:, width:] = 0
    elif name.endswith(("attn.q_norm.weight", "attn.k_norm.weight", "attn.proj.weight")):
        values[..., width:] = 0
    return values
