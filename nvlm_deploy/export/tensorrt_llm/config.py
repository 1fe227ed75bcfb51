"""`config.json` and `quant_cfg.json` of a TensorRT-LLM checkpoint, written and read.

Only keys that both 0.12 and 1.2 know are written, as ModelOpt does: their `Mapping` and `QuantConfig` refuse
keys that they do not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nvlm_deploy import __version__
from nvlm_deploy.config.model import LanguageConfig
from nvlm_deploy.errors import NvlmError, UnsuitableError
from nvlm_deploy.export.tensorrt_llm.cross_config import CROSS_KEY, cross_keys, read_cross
from nvlm_deploy.export.tensorrt_llm.matrices import matrices_of
from nvlm_deploy.export.tensorrt_llm.parallel import Parallel
from nvlm_deploy.export.tensorrt_llm.releases import Release
from nvlm_deploy.export.tensorrt_llm.schemes import FLOAT, Form, scheme_named
from nvlm_deploy.export.tensorrt_llm.table import Layout

CONFIG_NAME = "config.json"
QUANT_CONFIG_NAME = "quant_cfg.json"
_MIXED = "MIXED_PRECISION"
# What `QWenConfig` and `LLaMAConfig` have beyond what all models have.
_QWEN = {
    "qwen_type": "qwen2",
    "attn_bias": True,
    "mlp_bias": False,
    "seq_length": 8192,
    "use_logn_attn": False,
    "disable_weight_only_quant_plugin": False,
}
_LLAMA = {
    "attn_bias": False,
    "mlp_bias": False,
    "residual_mlp": False,
    "disable_weight_only_quant_plugin": False,
}


def model_config(
    layout: Layout, dtype: str, release: Release
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the contents of `config.json`, and of `quant_cfg.json` if layers have formats of their own.

    Raises:
        UnsuitableError: the release, or a pipeline, cannot tell layers apart that are stored differently.
    """
    language, parallel = layout.language, layout.parallel
    quantization, by_layer = _quantization(layout, release)
    config = {
        "producer": {"name": "nvlm-deploy", "version": __version__},
        "architecture": language.architecture,
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": language.vocab_size,
        "hidden_size": language.hidden_size,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_heads,
        "num_key_value_heads": language.num_kv_heads,
        "head_size": language.head_dim,
        "intermediate_size": layout.intermediate,
        "hidden_act": "silu",
        "norm_epsilon": language.norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": language.max_position_embeddings,
        "rotary_embedding_dim": language.head_dim,
        "rotary_base": language.rope_theta,
        # The released config's scaling acts beyond max_position_embeddings only.
        "rotary_scaling": None,
        "qk_layernorm": False,
        "use_parallel_embedding": layout.split_embedding,
        "embedding_sharding_dim": 0,
        "tie_word_embeddings": language.tie_word_embeddings,
        **_family(layout),
        "mapping": {"world_size": parallel.world_size, "tp_size": parallel.tp, "pp_size": parallel.pp},
        "quantization": quantization,
    }
    return config, by_layer


def _family(layout: Layout) -> dict[str, Any]:
    """What a family of models has beyond what all have; with cross-attention, also instead of it."""
    if layout.cross is not None:
        return cross_keys(layout.language, layout.cross)
    return _QWEN if layout.language.qkv_bias else _LLAMA


def _quantization(layout: Layout, release: Release) -> tuple[dict[str, Any], dict[str, Any] | None]:
    entries = dict(_entries(layout))
    cache = "FP8" if layout.fp8_cache else None
    quantized = {name: entry for name, entry in entries.items() if entry}
    plain = [name for name, entry in entries.items() if not entry]
    kinds = {tuple(sorted(entry.items())) for entry in quantized.values()}
    if len(kinds) > 1 or (kinds and plain):
        _check_layers_apart(layout, release, mixed=len(kinds) > 1)
    if len(kinds) > 1:
        common = {"quant_algo": _MIXED, "kv_cache_quant_algo": cache}
        return common, {**common, "quantized_layers": quantized}
    entry = next(iter(quantized.values()), {"quant_algo": None})
    excluded = ["lm_head", *(plain if quantized else [])]
    return {**entry, "kv_cache_quant_algo": cache, "exclude_modules": excluded}, None


def _check_layers_apart(layout: Layout, release: Release, mixed: bool) -> None:
    if mixed and not release.mixed:
        raise UnsuitableError(
            f"TensorRT-LLM {release.name} has one format for all layers, and this checkpoint has several",
            hint="quantize with a recipe without 'layers' rules, or name another --version",
        )
    if layout.parallel.pp > 1:
        raise UnsuitableError(
            "layers of this checkpoint are stored differently, and every stage of --pp "
            f"{layout.parallel.pp} counts its layers from 0, so that TensorRT-LLM cannot tell them apart",
            hint="use --pp 1",
        )


def _entries(layout: Layout) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every matrix with its format in TensorRT-LLM's terms; empty for 16 bits."""
    for layer, forms in enumerate(layout.forms):
        for fused in layout.matrices(layer):
            yield f"transformer.layers.{layer}.{fused.name}", _entry(forms[fused.name])


def _entry(form: Form) -> dict[str, Any]:
    if form.scheme.algorithm is None:
        return {}
    entry: dict[str, Any] = {"quant_algo": form.scheme.algorithm}
    if form.group_size:
        entry["group_size"] = form.group_size
    if form.scheme.algorithm in ("W4A16_AWQ", "W4A8_AWQ"):
        entry |= {"has_zero_point": False, "pre_quant_scale": form.prequant != "none"}
    return entry


def read_layout(
    config: Mapping[str, Any], by_layer: Mapping[str, Any] | None, record: Mapping[str, Any], where: str
) -> Layout:
    """Return the layout that the contents of `config.json`, `quant_cfg.json` and `export.json` describe.

    Only the last one knows the inner width of the MLPs without padding.

    Raises:
        NvlmError: a key is missing, or a format is not one of this project's.
    """
    try:
        mapping, quantization = config["mapping"], config["quantization"]
        language, cross = _language(config, record["intermediate_size"]), None
        if CROSS_KEY in config:
            language, cross = read_cross(config, language)
        parallel = Parallel(mapping["tp_size"], mapping["pp_size"])
        forms = tuple(
            {
                fused.name: _form(f"transformer.layers.{layer}.{fused.name}", quantization, by_layer, where)
                for fused in matrices_of(cross, layer)
            }
            for layer in range(language.num_layers)
        )
        cache = quantization["kv_cache_quant_algo"] == "FP8"
        split = config["use_parallel_embedding"]
        return Layout(language, parallel, forms, config["intermediate_size"], split, cache, cross)
    except KeyError as error:
        raise NvlmError(f"{where}: {CONFIG_NAME} or export.json lacks the key {error}") from None


def _language(config: Mapping[str, Any], intermediate: int) -> LanguageConfig:
    return LanguageConfig(
        architecture=config["architecture"],
        hidden_size=config["hidden_size"],
        intermediate_size=intermediate,
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_size"],
        vocab_size=config["vocab_size"],
        norm_eps=config["norm_epsilon"],
        rope_theta=config["rotary_base"],
        qkv_bias=config["attn_bias"],
        tie_word_embeddings=config["tie_word_embeddings"],
        max_position_embeddings=config["max_position_embeddings"],
        # No part of a TensorRT-LLM checkpoint: engines are told the ids that end an answer.
        eos_token_id=-1,
    )


def _form(name: str, quantization: Mapping[str, Any], by_layer: Mapping[str, Any] | None, where: str) -> Form:
    entry = quantization
    if quantization["quant_algo"] == _MIXED:
        entry = (by_layer or {}).get("quantized_layers", {}).get(name, {"quant_algo": None})
    elif name in quantization.get("exclude_modules", ()):
        entry = {"quant_algo": None}
    scheme = scheme_named(entry["quant_algo"])
    if scheme is None:
        raise NvlmError(f"{where}: the format {entry['quant_algo']} of {name} is not supported")
    if scheme is FLOAT:
        return Form(scheme)
    prequant = scheme.prequant or entry.get("pre_quant_scale", False)
    return Form(scheme, entry.get("group_size", 0), "source" if prequant else "none")
