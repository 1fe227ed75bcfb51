"""`config.json` objects in the released style, quirks included, for models of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that make an NVLM-D; names as in the released `config.json`."""

    tile_size: int
    vision_hidden: int
    vision_intermediate: int
    vision_layers: int
    vision_heads: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    max_positions: int = 32768
    tie_word_embeddings: bool = False
    bos_token_id: int = 151643
    eos_token_id: int = 151645
    max_tiles: int = 6


SHAPES: dict[str, ModelShape] = {
    # A decoder and a tower as unequal as Yi-34B and InternViT-6B, whose training the paper timed.
    "nvlm-d-0.1b": ModelShape(
        tile_size=448,
        vision_hidden=320,
        vision_intermediate=1280,
        vision_layers=12,
        vision_heads=5,
        hidden=640,
        intermediate=1792,
        layers=20,
        heads=10,
        kv_heads=2,
        vocab_size=8192,
        bos_token_id=8190,
        eos_token_id=8191,
    ),
    # InternViT-300M and Qwen2-0.5B: the pair that peers' smallest vision-language models are made of.
    "nvlm-d-0.5b": ModelShape(
        tile_size=448,
        vision_hidden=1024,
        vision_intermediate=4096,
        vision_layers=24,
        vision_heads=16,
        hidden=896,
        intermediate=4864,
        layers=24,
        heads=14,
        kv_heads=2,
        vocab_size=151936,
    ),
    "nvlm-d-72b": ModelShape(
        tile_size=448,
        vision_hidden=3200,
        vision_intermediate=12800,
        vision_layers=45,
        vision_heads=25,
        hidden=8192,
        intermediate=29568,
        layers=80,
        heads=64,
        kv_heads=8,
        vocab_size=152064,
    ),
}


def cross_style_config(
    shape: ModelShape, variant: Literal["X", "H"], layers: Sequence[int], **options: object
) -> dict[str, Any]:
    """Return the `config.json` object of an NVLM-X or NVLM-H, in the style of the released NVLM-D.

    Args:
        layers: decoder layers with cross-attention.
        options: other fields of `cross_attention_config` (see `CrossAttentionConfig`).
    """
    config = released_style_config(shape)
    del config["auto_map"]
    name = f"NVLM_{variant}"
    section = {"layers": list(layers), **options}
    return {**config, "architectures": [name], "model_type": name, "cross_attention_config": section}


def released_style_config(shape: ModelShape) -> dict[str, Any]:
    """Return a `config.json` object with the fields, values and quirks of HF nvidia/NVLM-D-72B."""
    return {
        "architectures": ["NVLM_D"],
        "auto_map": {
            "AutoConfig": "configuration_nvlm_d.NVLM_D_Config",
            "AutoModel": "modeling_nvlm_d.NVLM_D_Model",
            "AutoModelForCausalLM": "modeling_nvlm_d.NVLM_D_Model",
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": shape.tile_size,
        "llm_config": _language(shape),
        "max_dynamic_patch": shape.max_tiles,
        "min_dynamic_patch": 1,
        "model_type": "NVLM_D",
        "ps_version": "v2",
        "select_layer": -1,
        "template": "chatml",
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": _vision(shape),
    }


def _language(shape: ModelShape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "bos_token_id": shape.bos_token_id,
        "do_sample": False,
        "eos_token_id": shape.eos_token_id,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.max_positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": None,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"factor": 3.0, "type": "dynamic"},
        "rope_theta": 1000000.0,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "top_k": 1,
        "top_p": 0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def _vision(shape: ModelShape) -> dict[str, Any]:
    return {
        "architectures": ["InternVisionModel"],
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": shape.vision_hidden,
        "image_size": shape.tile_size,
        "initializer_factor": 0.1,
        "initializer_range": 1e-10,
        "intermediate_size": shape.vision_intermediate,
        "layer_norm_eps": 1e-06,
        "model_type": "intern_vit_6b",
        "norm_type": "rms_norm",
        "num_attention_heads": shape.vision_heads,
        "num_channels": 3,
        "num_hidden_layers": shape.vision_layers,
        "patch_size": 14,
        "qk_normalization": True,
        "qkv_bias": False,
        "torch_dtype": "bfloat16",
        "use_flash_attn": True,
    }
