"""The tensors that a server looks for, from config.json alone.

The decoder's are written down here as its Hugging Face class has them, and not taken from this project's own
table: what is checked is the table's result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvlm_deploy.checkpoint.weight_table import expected_tensors
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.export.serving.loaders import Loader

DECODER_PREFIX = "language_model."
Shape = tuple[int, ...]


def expected(config: Mapping[str, Any], loader: Loader, where: str) -> dict[str, Shape]:
    """Names and shapes in floats of every tensor that `loader` looks for.

    Raises:
        NvlmError: config.json lacks a size.
    """
    if loader.scope == "decoder":
        return decoder_tensors(config, "")
    whole = expected_tensors(NvlmConfig.from_dict(config, source=where))
    others = {name: shape for name, shape in whole.items() if not name.startswith(DECODER_PREFIX)}
    return {**decoder_tensors(config["llm_config"], DECODER_PREFIX), **others}


def decoder_tensors(config: Mapping[str, Any], prefix: str) -> dict[str, Shape]:
    """Those of Qwen2 (with biases on q, k and v) or of a llama-style decoder."""
    hidden, inner, vocabulary = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    linears = {
        "self_attn.q_proj": (heads * size, hidden),
        "self_attn.k_proj": (kv_heads * size, hidden),
        "self_attn.v_proj": (kv_heads * size, hidden),
        "self_attn.o_proj": (hidden, heads * size),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    found: dict[str, Shape] = {f"{prefix}model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        stem = f"{prefix}model.layers.{layer}."
        for name, shape in linears.items():
            found[f"{stem}{name}.weight"] = shape
            if config["architectures"][0] == "Qwen2ForCausalLM" and name.endswith(
                ("q_proj", "k_proj", "v_proj")
            ):
                found[f"{stem}{name}.bias"] = shape[:1]
        found |= {
            f"{stem}{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")
        }
    found[f"{prefix}model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        found[f"{prefix}lm_head.weight"] = (vocabulary, hidden)
    return found
