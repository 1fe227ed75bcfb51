"""The configs of directories that servers open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.weight_table import model_table
from nvlm_deploy.export.serving.expected import DECODER_PREFIX
from nvlm_deploy.quantization.checkpoint import QuantizedWeights
from nvlm_deploy.quantization.plan import FULL_PRECISION, Storage
from nvlm_deploy.quantization.unified import QUANT_CONFIG_NAME, config_json_section, quant_config

_MODEL_TYPES = {"Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}
# Sampling defaults that the released file keeps among the sizes; servers refuse top_p 0.
_SAMPLING = ("do_sample", "top_k", "top_p")


def served_config(checkpoint: Path, config: Mapping[str, Any], *, adapted: bool) -> dict[str, Any]:
    """config.json and hf_quant_config.json of a whole checkpoint by their names.

    `adapted`: without the dynamic scaling of positions, which the model was not trained with and which a
    server would apply to all of them, and without sampling defaults that it refuses.
    """
    configs: dict[str, Any] = {"config.json": dict(config)}
    if adapted:
        configs["config.json"]["llm_config"] = _language(config)
    path = checkpoint / QUANT_CONFIG_NAME
    if path.exists():
        configs[QUANT_CONFIG_NAME] = json.loads(path.read_text(encoding="utf-8"))
    return configs


def decoder_config(config: Mapping[str, Any], weights: ModelWeights) -> dict[str, Any]:
    """The same of the decoder alone, under the names of its own class."""
    language = _language(config)
    language["model_type"] = _MODEL_TYPES[language["architectures"][0]]
    language.setdefault("torch_dtype", config.get("torch_dtype", "bfloat16"))
    configs: dict[str, Any] = {"config.json": language}
    if isinstance(weights, QuantizedWeights):
        reader = weights.quantized_reader
        cache = "fp8" if reader.quant_config.fp8_kv_cache else "fp16"
        quantization = quant_config(_decoder_linears(weights), cache)
        section = quantization["quantization"]
        section["exclude_modules"] = [name for name in section["exclude_modules"] if "*" not in name]
        language["quantization_config"] = config_json_section(quantization)
        configs[QUANT_CONFIG_NAME] = quantization
    return configs


def decoder_name(name: str) -> str | None:
    """A tensor's name in the decoder's own checkpoint; None if it is not the decoder's."""
    return name.removeprefix(DECODER_PREFIX) if name.startswith(DECODER_PREFIX) else None


def _language(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config["llm_config"].items() if key not in _SAMPLING}
    return {**kept, "rope_scaling": None}


def _decoder_linears(weights: QuantizedWeights) -> dict[str, Storage]:
    reader = weights.quantized_reader
    linears = {}
    for rule in model_table(reader.config).rules:
        (source, *_) = rule.sources
        module = decoder_name(source.removesuffix(".weight"))
        if module is not None and source.endswith("_proj.weight"):
            linears[module] = reader.storages.get(source, FULL_PRECISION)
    if not reader.config.language.tie_word_embeddings:
        linears["lm_head"] = reader.storages.get(f"{DECODER_PREFIX}lm_head.weight", FULL_PRECISION)
    return linears
