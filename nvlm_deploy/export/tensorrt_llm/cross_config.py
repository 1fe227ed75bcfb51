"""What `config.json` of a TensorRT-LLM checkpoint says of cross-attention, written and read.

The keys are those of `MLLaMAConfig` in TensorRT-LLM 1.2, and one section that our model class reads
(`nvlm_deploy/backends/tensorrt_llm/nvlm_mllama.py`). TensorRT-LLM counts layers as rows of caches, so
`num_hidden_layers` is the number of rows (see `CacheRows`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.config.model import LanguageConfig
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.export.tensorrt_llm.matrices import CacheRows

# The builder asks a model for an encoder's sizes only if the name of its architecture has "mllama" in it.
ARCHITECTURE = "NvlmMllamaForCausalLM"
CROSS_KEY = "nvlm_cross_attention"


def cross_keys(language: LanguageConfig, cross: CrossAttentionConfig) -> dict[str, Any]:
    """What NVLM-X and NVLM-H have beyond what all models have, and instead of it."""
    rows = CacheRows.of(cross, language.num_layers)
    self_heads, cross_heads = rows.heads(language.num_kv_heads, cross.num_kv_heads)
    return {
        "architecture": ARCHITECTURE,
        "num_hidden_layers": rows.count,
        "attn_bias": language.qkv_bias,
        "mlp_bias": False,
        "cross_attention": True,
        "cross_attention_layers": list(rows.cross_rows),
        "num_kv_heads_per_layer": self_heads,
        "num_kv_heads_per_cross_attn_layer": cross_heads,
        # The projector's output, which cross-attention takes, is as wide as the decoder.
        "vision_output_dim": language.hidden_size,
        "embed_vocab_size": language.vocab_size,
        "skip_cross_attn_blocks": True,
        CROSS_KEY: {
            "language_architecture": language.architecture,
            **asdict(cross),
            "layers": list(cross.layers),
            "self_rows": list(rows.self_rows),
            "cross_rows": list(rows.cross_rows),
        },
    }


def read_cross(
    config: Mapping[str, Any], language: LanguageConfig
) -> tuple[LanguageConfig, CrossAttentionConfig]:
    """Read the section; `language` has the rows for its layers still.

    Raises:
        NvlmError: the rows are not those of these layers.
        KeyError: a field is missing.
    """
    section = dict(config[CROSS_KEY])
    self_rows, cross_rows = (tuple(section.pop(name)) for name in ("self_rows", "cross_rows"))
    architecture, layers = section.pop("language_architecture"), tuple(section.pop("layers"))
    try:
        cross = CrossAttentionConfig(layers=layers, **section)
    except TypeError as error:
        raise NvlmError(f"config.json: {CROSS_KEY}: {error}") from None
    language = replace(language, architecture=architecture, num_layers=len(self_rows))
    expected = CacheRows.of(cross, language.num_layers)
    if (self_rows, cross_rows) != (expected.self_rows, expected.cross_rows):
        raise NvlmError(f"config.json: {CROSS_KEY} has the rows of other layers than {list(layers)}")
    if tuple(config["cross_attention_layers"]) != cross_rows or config["num_hidden_layers"] != expected.count:
        raise NvlmError(f"config.json: cross_attention_layers and num_hidden_layers do not fit {CROSS_KEY}")
    return language, cross
