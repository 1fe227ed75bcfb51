"""Names and shapes of a model's parameters, from its configuration alone.

They are those of `nvlm_deploy.models`, which the weight table knows, too: it needs torch to work them out,
and a table of recipes should not wait for torch.
"""

from __future__ import annotations

from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.config.model import LanguageConfig, NvlmConfig, VisionConfig

Shape = tuple[int, ...]


def parameter_shapes(config: NvlmConfig) -> dict[str, Shape]:
    """Shapes of all parameters by name, without dummy heads; a tied `lm_head` is not among them."""
    shapes = _tower(config.vision)
    source, width = config.projector_input_size, config.language.hidden_size
    hidden = width if config.projector_layers == 1 else config.projector_hidden_size
    shapes |= {
        "projector.norm.weight": (source,),
        "projector.norm.bias": (source,),
        "projector.fc1.weight": (hidden, source),
    }
    if config.projector_layers == 2:
        shapes["projector.fc2.weight"] = (width, hidden)
    return shapes | _decoder(config)


def _tower(vision: VisionConfig) -> dict[str, Shape]:
    width, inner, patch = vision.hidden_size, vision.intermediate_size, vision.patch_size
    shapes: dict[str, Shape] = {
        "vision.class_embedding": (width,),
        "vision.position_embedding": (vision.num_positions, width),
        "vision.patch_embedding.weight": (width, vision.num_channels, patch, patch),
        "vision.patch_embedding.bias": (width,),
    }
    layer: dict[str, Shape] = {
        "norm1.weight": (width,),
        **{f"attention.{name}_proj.weight": (width, width) for name in ("q", "k", "v", "out")},
        "attention.q_norm.weight": (width,),
        "attention.k_norm.weight": (width,),
        "attention.out_proj.bias": (width,),
        "layer_scale1": (width,),
        "norm2.weight": (width,),
        "mlp.fc1.weight": (inner, width),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (width, inner),
        "mlp.fc2.bias": (width,),
        "layer_scale2": (width,),
    }
    for number in range(vision.num_layers):
        shapes |= {f"vision.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes


def _decoder(config: NvlmConfig) -> dict[str, Shape]:
    language, cross = config.language, config.cross_attention
    width, inner = language.hidden_size, language.intermediate_size
    table = (language.vocab_size, width)
    heads = {"q_proj": language.q_size, "k_proj": language.kv_size, "v_proj": language.kv_size}
    shapes: dict[str, Shape] = {
        "language.embed_tokens.weight": table,
        "language.norm.weight": (width,),
    }
    if not language.tie_word_embeddings:
        shapes["language.lm_head.weight"] = table
    layer: dict[str, Shape] = {
        "input_norm.weight": (width,),
        **{f"attention.{name}.weight": (size, width) for name, size in heads.items()},
        "attention.o_proj.weight": (width, language.q_size),
        "post_attention_norm.weight": (width,),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    if language.qkv_bias:
        layer |= {f"attention.{name}.bias": (size,) for name, size in heads.items()}
    for number in range(language.num_layers):
        shapes |= {f"language.layers.{number}.{name}": shape for name, shape in layer.items()}
        if cross is not None and number in cross.layers:
            added = _cross_attention(cross, language)
            shapes |= {f"language.layers.{number}.cross.{name}": shape for name, shape in added.items()}
    return shapes


def _cross_attention(cross: CrossAttentionConfig, language: LanguageConfig) -> dict[str, Shape]:
    width, inner = language.hidden_size, language.intermediate_size
    heads = {"q_proj": cross.q_size, "k_proj": cross.kv_size, "v_proj": cross.kv_size}
    shapes: dict[str, Shape] = {
        "norm.weight": (width,),
        **{f"attention.{name}.weight": (size, width) for name, size in heads.items()},
        "attention.o_proj.weight": (width, cross.q_size),
        "gate": (1,),
    }
    if cross.kv_norm:
        shapes["kv_norm.weight"] = (width,)
    if cross.qkv_bias:
        shapes |= {f"attention.{name}.bias": (size,) for name, size in heads.items()}
    if cross.gated_mlp:
        shapes |= {
            "mlp_norm.weight": (width,),
            "mlp.gate_proj.weight": (inner, width),
            "mlp.up_proj.weight": (inner, width),
            "mlp.down_proj.weight": (width, inner),
            "mlp_gate": (1,),
        }
    return shapes
