"""What a build kit of NVLM-X or NVLM-H has beside its parts: the builder's command, and embeddings of tags.

The tags of NVLM-H's tiles stand among keys, so whoever hands tiles to the engine needs their embeddings,
which are in no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nvlm_deploy.backends.tensorrt_llm.build import ENGINE_FOLDER
from nvlm_deploy.backends.tensorrt_llm.build_config import BuildArguments
from nvlm_deploy.checkpoint.shards import ShardSet
from nvlm_deploy.export.tensorrt_llm.cross_config import ARCHITECTURE
from nvlm_deploy.export.tensorrt_llm.table import EMBEDDING
from nvlm_deploy.pipeline.export_tensorrt_llm import CLASS_FILE

Tags = Sequence[Sequence[int]]
"""Token ids of `<tile_1>`, `<tile_2>`, ... for NVLM-H; empty for NVLM-X, whose tags are text."""

TAGS_FILE = "tile_tags.safetensors"


def write_tags(directory: Path, checkpoint: Path, tags: Tags) -> None:
    """Write TAGS_FILE into a kit: `ids` int64 [n] and `embeddings` float32 [n, D]."""
    ids, shards = sorted({token for tag in tags for token in tag}), ShardSet(checkpoint)
    width = shards.info(EMBEDDING).shape[1]
    # The table is large, and few of its rows are wanted.
    rows = [shards.read_elements(EMBEDDING, i * width, (i + 1) * width, torch.float32) for i in ids]
    save_file({"ids": torch.tensor(ids), "embeddings": torch.stack(rows)}, directory / TAGS_FILE)


def builder_command(arguments: BuildArguments) -> str:
    """The command line of TensorRT-LLM's own builder that makes the engine of a kit, run in the kit."""
    plugins = {name: arguments.plugin[name] for name in _PLUGINS if name in arguments.plugin}
    options = {
        "checkpoint_dir": ENGINE_FOLDER,
        "output_dir": "engine",
        "model_cls_file": f"{ENGINE_FOLDER}/{CLASS_FILE}",
        "model_cls_name": ARCHITECTURE,
        **{name: arguments.build[name] for name in _BUILD if name in arguments.build},
        **{name: _SWITCH.get(value, value) for name, value in plugins.items()},
    }
    return "trtllm-build " + " \\\n        ".join(f"--{name} {value}" for name, value in options.items())


_BUILD = (
    "max_batch_size",
    "max_input_len",
    "max_seq_len",
    "max_num_tokens",
    "max_prompt_embedding_table_size",
    "max_encoder_input_len",
)
_PLUGINS = (
    "gpt_attention_plugin",
    "gemm_plugin",
    "context_fmha",
    "remove_input_padding",
    "tokens_per_block",
    "use_paged_context_fmha",
    "use_fused_mlp",
)
_SWITCH: dict[Any, str] = {True: "enable", False: "disable"}
