"""The model's configuration, read from the released `config.json` with its quirks.

Only the standard library is imported here, because the runtime reads the same file. Nothing is
taken from class defaults: the released ones differ from the released values. Every field that the
code relies on is asserted when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nvlm_deploy.config.cross_attention import CrossAttentionConfig, read_cross_attention
from nvlm_deploy.config.fields import ConfigFields
from nvlm_deploy.errors import NvlmError

Variant = Literal["D", "X", "H"]

# The released modelling code hard-codes seven zero heads behind the real ones, so that 25 heads
# become 32 and tensor parallelism divides them. They are in the file and not in the config.
NUM_DUMMY_HEADS = 7

# Megatron gives every tile tag the same number of tokens; with Yi's vocabulary that is
# `<tile_global>`, with Qwen2's `<tile_global_thumbnail>`.
_THUMBNAIL_TAGS = {
    "Qwen2ForCausalLM": "<tile_global_thumbnail>",
    "LlamaForCausalLM": "<tile_global>",
}
_VARIANT_OF_ARCHITECTURE: dict[str, Variant] = {
    "NVLM_D": "D",
    "NVLM_D_Model": "D",
    "NVLM_X": "X",
    "NVLM_H": "H",
}


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """InternViT as shipped inside NVLM: RMSNorm, joint QK normalisation, layer scale."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    num_channels: int
    norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def padded_hidden_size(self) -> int:
        """Width of the attention tensors on disk: real and dummy heads."""
        return (self.num_heads + NUM_DUMMY_HEADS) * self.head_dim

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        """Patches and the class token."""
        return self.patches_per_side**2 + 1


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """A Qwen2 or llama-style (Yi) decoder with grouped-query attention."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    qkv_bias: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    eos_token_id: int

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class NvlmConfig:
    """One NVLM model: vision tower, projector, decoder, and the tile rule that feeds them."""

    variant: Variant
    vision: VisionConfig
    language: LanguageConfig
    max_tiles: int
    min_tiles: int
    use_thumbnail: bool
    thumbnail_tag: str
    cross_attention: CrossAttentionConfig | None = None
    """How the decoder attends to tiles; None for NVLM-D."""

    # The released code uses torch's default here, not the decoder's 1e-6.
    projector_norm_eps: float = 1e-5

    @property
    def tile_size(self) -> int:
        """Side of a tile, pixels."""
        return self.vision.image_size

    @property
    def visual_tokens_per_tile(self) -> int:
        """Pixel shuffle merges 2 x 2 patches into one token: 256 for 448 px tiles."""
        return (self.vision.patches_per_side // 2) ** 2

    @property
    def projector_input_size(self) -> int:
        return 4 * self.vision.hidden_size

    @property
    def projector_hidden_size(self) -> int:
        """The projector is as wide as the decoder's MLP (29,568 in the 72B), unlike InternVL's."""
        return self.language.intermediate_size

    @property
    def projector_layers(self) -> int:
        """Two linears with a GELU between them; NVLM-X has one (paper 4.3)."""
        return 1 if self.variant == "X" else 2

    def cross_tiles(self, tiles: int) -> int:
        """How many of an image's tiles go to cross-attention, from the first on; others are in the sequence.

        NVLM-H keeps the last in the sequence: the thumbnail, or the only tile.
        """
        return {"D": 0, "X": tiles, "H": tiles - 1}[self.variant]

    @classmethod
    def from_directory(cls, directory: Path) -> NvlmConfig:
        """Read `config.json` of a checkpoint or an engine bundle."""
        return cls.from_file(directory / "config.json")

    @classmethod
    def from_file(cls, path: Path) -> NvlmConfig:
        """Read one `config.json`.

        Raises:
            NvlmError: the file is missing, is no JSON, or holds a value that is not supported; the
                message names file, field and value.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NvlmError(
                f"{path} does not exist",
                hint="point at a directory with the released layout: config.json, safetensors, tokenizer",
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise NvlmError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(raw, dict):
            raise NvlmError(f"{path} must hold a JSON object, not {type(raw).__name__}")
        return cls.from_dict(raw, source=str(path))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "config.json") -> NvlmConfig:
        """Read the released `config.json` structure; `source` is named in errors."""
        top = ConfigFields(raw, source, "")
        variant = _VARIANT_OF_ARCHITECTURE[top.first_architecture(_VARIANT_OF_ARCHITECTURE)]
        top.expect("downsample_ratio", 0.5)
        top.expect("ps_version", "v2")
        top.expect("select_layer", -1)
        top.expect("template", "chatml")
        top.expect("dynamic_image_size", True)
        top.expect("use_thumbnail", True)
        vision = _read_vision(top.section("vision_config"))
        language = _read_language(top.section("llm_config"))
        cross_attention = None
        if variant != "D":
            cross_attention = read_cross_attention(top.section("cross_attention_config"), language)
        elif "cross_attention_config" in raw:
            top.fail("cross_attention_config", "given", "none in an NVLM-D; NVLM_X or NVLM_H have one")
        tile_size = top.integer("force_image_size")
        if tile_size != vision.image_size:
            top.fail("force_image_size", tile_size, f"vision_config.image_size = {vision.image_size}")
        return cls(
            variant=variant,
            vision=vision,
            language=language,
            max_tiles=top.integer("max_dynamic_patch"),
            min_tiles=top.integer("min_dynamic_patch"),
            use_thumbnail=True,
            thumbnail_tag=_THUMBNAIL_TAGS[language.architecture],
            cross_attention=cross_attention,
        )


def _read_vision(fields: ConfigFields) -> VisionConfig:
    fields.expect("model_type", "intern_vit_6b")
    fields.expect("hidden_act", "gelu")
    fields.expect("norm_type", "rms_norm")
    fields.expect("qk_normalization", True)
    fields.expect("qkv_bias", False)
    config = VisionConfig(
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=fields.integer("num_attention_heads"),
        image_size=fields.integer("image_size"),
        patch_size=fields.integer("patch_size"),
        num_channels=fields.integer("num_channels"),
        norm_eps=fields.number("layer_norm_eps"),
    )
    fields.expect("num_channels", 3)
    if config.hidden_size % config.num_heads:
        fields.fail("num_attention_heads", config.num_heads, f"a divisor of {config.hidden_size}")
    if config.image_size % (2 * config.patch_size):
        fields.fail("image_size", config.image_size, f"a multiple of {2 * config.patch_size}")
    return config


def _read_language(fields: ConfigFields) -> LanguageConfig:
    # `model_type` says llama for a Qwen2 decoder, so `architectures` decides.
    architecture = fields.first_architecture(_THUMBNAIL_TAGS)
    fields.expect("hidden_act", "silu")
    fields.expect("mlp_bias", False)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads")
    if num_heads % num_kv_heads:
        fields.fail("num_key_value_heads", num_kv_heads, f"a divisor of {num_heads}")
    if "head_dim" not in fields.raw and hidden_size % num_heads:
        fields.fail("num_attention_heads", num_heads, f"a divisor of {hidden_size}")
    _check_rope_scaling(fields)
    # A sampling default of the released file: `top_p` 0 with `top_k` 1 means greedy. It is not read.
    return LanguageConfig(
        architecture=architecture,
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=fields.integer("head_dim") if fields.raw.get("head_dim") else hidden_size // num_heads,
        vocab_size=fields.integer("vocab_size"),
        norm_eps=fields.number("rms_norm_eps"),
        rope_theta=fields.number("rope_theta"),
        qkv_bias=_qkv_bias(fields, architecture),
        tie_word_embeddings=bool(fields.get("tie_word_embeddings")),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        eos_token_id=fields.integer("eos_token_id", minimum=0),
    )


def _qkv_bias(fields: ConfigFields, architecture: str) -> bool:
    """Qwen2 has biases on q, k and v and none on o; llama-style decoders here have none at all."""
    expected = architecture == "Qwen2ForCausalLM"
    fields.expect("attention_bias", expected)
    return expected


def _check_rope_scaling(fields: ConfigFields) -> None:
    """Accept no scaling, or the dynamic one, which acts only beyond `max_position_embeddings`.

    The model was trained without scaling, and engines never exceed that length, so plain rotary
    embeddings are exact for every context that can be built.
    """
    scaling = fields.raw.get("rope_scaling")
    if scaling is None:
        return
    kind = scaling.get("type", scaling.get("rope_type")) if isinstance(scaling, dict) else scaling
    if kind not in ("dynamic", "default"):
        fields.fail("rope_scaling", scaling, "null or the type 'dynamic'")
