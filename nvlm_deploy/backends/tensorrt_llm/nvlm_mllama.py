"""NVLM-X and NVLM-H for the engine builder of TensorRT-LLM 1.2: a Qwen2 decoder with gated cross-attention.

    trtllm-build --checkpoint_dir RANKS --output_dir ENGINE --max_encoder_input_len 1793 \\
        --model_cls_file nvlm_mllama.py --model_cls_name NvlmMllamaForCausalLM

The file stands alone, so that it can lie beside a checkpoint: TensorRT-LLM imports it, and nothing of
nvlm_deploy is imported here. It builds on `MLLaMAForCausalLM`, the only decoder of TensorRT-LLM that attends
to images, for the inputs of the engine, and on its layers.

What differs from MLLaMA: `encoder_output` is normalized already, once for all layers, so a layer only scales
its channels. Its first row is zeros, and a token that sees no tile attends to that row alone: it gets zeros
without a mask that is empty, and `cross_attention_mask[:, 0]` tells. Queries and keys with values are
matrices of their own, so each has its own scales.

Not yet run on a GPU. Sources: `models/mllama/`, `models/qwen/model.py`, `models/modeling_utils.py`,
`layers/`, `builder.py`, `commands/build.py` of TensorRT-LLM 1.x.
"""

from __future__ import annotations

from typing import Any

from tensorrt_llm._utils import pad_vocab_size
from tensorrt_llm.functional import Conditional, PositionEmbeddingType, Tensor, concat, shape, tanh
from tensorrt_llm.functional import slice as cut
from tensorrt_llm.layers import Attention, AttentionMaskType, ColumnLinear, Embedding, GatedMLP, RmsNorm
from tensorrt_llm.models import MODEL_MAP
from tensorrt_llm.models.mllama.config import MLLaMAConfig
from tensorrt_llm.models.mllama.model import MLLaMAForCausalLM
from tensorrt_llm.models.modeling_utils import PretrainedModel
from tensorrt_llm.module import Module, ModuleList
from tensorrt_llm.parameter import Parameter


class NvlmMllamaConfig(MLLaMAConfig):
    """A checkpoint's `config.json`. nvlm_cross_attention: see `nvlm_deploy.config.cross_attention`; also

    self_rows, cross_rows: the layers' numbers in the runtime's caches, which count each attention.
    """

    def __init__(self, *, nvlm_cross_attention: dict[str, Any], **kwargs: Any) -> None:
        self.nvlm_cross_attention = nvlm_cross_attention
        super().__init__(**kwargs)

    @property
    def embed_vocab_size(self) -> int:
        """Rows of the embedding: none beside the vocabulary."""
        return int(self.vocab_size)

    @property
    def num_kv_heads_per_cross_attn_layer(self) -> list[int]:
        """KV heads for tiles of every row."""
        cross = self.nvlm_cross_attention
        return [
            cross["num_kv_heads"] if row in cross["cross_rows"] else 0
            for row in range(self.num_hidden_layers)
        ]


class ChannelScale(Module):
    """What is left of a norm whose input is normalized already."""

    def __init__(self, config: NvlmMllamaConfig) -> None:
        super().__init__()
        self.weight = Parameter(shape=(config.hidden_size,), dtype=config.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.value


class CrossAttention(Attention):
    """TensorRT-LLM's attention with two matrices instead of the one of queries, keys and values.

    Its `forward` asks `qkv` for text and `kv` for tiles. Of the former the kernels read the queries alone.
    """

    def __init__(self, config: NvlmMllamaConfig, row: int) -> None:
        cross, mapping = config.nvlm_cross_attention, config.mapping
        super().__init__(
            local_layer_idx=row,
            hidden_size=config.hidden_size,
            attention_head_size=config.head_size,
            num_attention_heads=cross["num_heads"],
            num_kv_heads=cross["num_kv_heads"],
            max_position_embeddings=config.max_position_embeddings,
            attention_mask_type=AttentionMaskType.causal,
            # No rotation.
            position_embedding_type=PositionEmbeddingType.learned_absolute,
            bias=cross["qkv_bias"],
            dense_bias=False,
            dtype=config.dtype,
            tp_group=mapping.tp_group,
            tp_size=mapping.tp_size,
            tp_rank=mapping.tp_rank,
            quant_mode=config.quant_mode,
            cross_attention=True,
            enable_qkv=False,
        )
        head_size, tp_size = config.head_size, mapping.tp_size
        shared = {
            "bias": cross["qkv_bias"],
            "dtype": config.dtype,
            "tp_group": mapping.tp_group,
            "tp_size": tp_size,
            "gather_output": False,
        }
        self.q = ColumnLinear(config.hidden_size, cross["num_heads"] * head_size, **shared)
        # More ranks than KV heads have a head each, the same as their neighbors.
        kv_heads = tp_size * self.num_attention_kv_heads
        self.kv = ColumnLinear(config.hidden_size, 2 * kv_heads * head_size, **shared)

    def qkv(self, hidden_states: Tensor, lora_runtime_params: Any = None) -> Tensor:
        """Queries [tokens, H * K], and as many columns as keys and values have, which nobody reads."""
        queries = self.q(hidden_states)
        width = self.num_attention_heads * self.attention_head_size
        copies, rest = divmod(2 * self.num_attention_kv_heads * self.attention_head_size, width)
        unread = [queries] * copies
        if rest:
            unread.append(cut(queries, [0, 0], concat([shape(queries, 0), rest])))
        return concat([queries, *unread], dim=1)


class GatedCrossAttention(Module):
    """The block that is added to a decoder layer: norm, attention, tanh gate; an MLP likewise if asked."""

    def __init__(self, config: NvlmMllamaConfig, row: int) -> None:
        super().__init__()
        cross = config.nvlm_cross_attention
        self.input_layernorm = _norm(config)
        self.attention = CrossAttention(config, row)
        self.gate_attn = Parameter(shape=(1,), dtype="float32")
        self.has_kv_norm, self.has_mlp = cross["kv_norm"], cross["gated_mlp"]
        if self.has_kv_norm:
            self.kv_layernorm = ChannelScale(config)
        if self.has_mlp:
            self.post_layernorm = _norm(config)
            self.mlp = _mlp(config)
            self.gate_ffwd = Parameter(shape=(1,), dtype="float32")

    def forward(self, hidden_states: Tensor, tiles: dict[str, Any], shared: dict[str, Any]) -> Tensor:
        """Return the states with what their tokens see of tiles; text without tiles is left as it is."""
        features, skip = tiles["encoder_output"], tiles["skip"]
        if self.has_kv_norm:
            features = self.kv_layernorm(features)
        attended = self.attention(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=tiles["mask"],
            attention_packed_mask=tiles["packed_mask"],
            encoder_output=features,
            cross_kv_cache_gen=tiles["cross_kv_cache_gen"],
            cross_kv_reuse=tiles["cross_kv_reuse"],
            skip_attn=skip,
            **shared,
        )
        if shared["use_cache"]:
            attended, _ = attended
        added = hidden_states + self._gate(self.gate_attn, attended) * tiles["sees"]
        # The attention has written nothing where it was skipped.
        chosen = Conditional(skip)
        hidden_states = chosen.add_output(chosen.add_input(hidden_states), chosen.add_input(added))
        return self._with_mlp(hidden_states, tiles["sees"], skip) if self.has_mlp else hidden_states

    def _with_mlp(self, hidden_states: Tensor, sees: Tensor, skip: Tensor) -> Tensor:
        chosen = Conditional(skip)
        skipped, inner = chosen.add_input(hidden_states), chosen.add_input(hidden_states)
        added = self._gate(self.gate_ffwd, self.mlp(self.post_layernorm(inner))) * chosen.add_input(sees)
        return chosen.add_output(skipped, inner + added)

    def _gate(self, gate: Parameter, x: Tensor) -> Tensor:
        return tanh(gate.value).cast(x.dtype) * x


class DecoderLayer(Module):
    """A layer of Qwen2, with the block of cross-attention before its MLP or in front of it, if it has one."""

    def __init__(self, config: NvlmMllamaConfig, layer: int) -> None:
        super().__init__()
        cross, mapping = config.nvlm_cross_attention, config.mapping
        self.input_layernorm = _norm(config)
        self.attention = Attention(
            local_layer_idx=cross["self_rows"][layer],
            hidden_size=config.hidden_size,
            attention_head_size=config.head_size,
            num_attention_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            attention_mask_type=AttentionMaskType.causal,
            position_embedding_type=config.position_embedding_type,
            rotary_embedding_base=config.rotary_base,
            rotary_embedding_scaling=config.rotary_scaling,
            bias=config.attn_bias,
            dense_bias=False,
            dtype=config.dtype,
            tp_group=mapping.tp_group,
            tp_size=mapping.tp_size,
            tp_rank=mapping.tp_rank,
            quant_mode=config.quant_mode,
        )
        self.mlp = _mlp(config)
        self.post_layernorm = _norm(config)
        self.attends = layer in cross["layers"]
        self.attends_first = self.attends and cross["placement"] == "before_layer"
        if self.attends:
            self.cross = GatedCrossAttention(config, cross["cross_rows"][cross["layers"].index(layer)])

    def forward(self, hidden_states: Tensor, tiles: dict[str, Any], shared: dict[str, Any]) -> Tensor:
        if self.attends_first:
            hidden_states = self.cross(hidden_states, tiles, shared)
        attended = self.attention(self.input_layernorm(hidden_states), **shared)
        if shared["use_cache"]:
            attended, _ = attended
        hidden_states = hidden_states + attended
        if self.attends and not self.attends_first:
            hidden_states = self.cross(hidden_states, tiles, shared)
        return hidden_states + self.mlp(self.post_layernorm(hidden_states))


class NvlmDecoder(Module):
    """Token ids, visual tokens in the sequence and tiles to normalized hidden states.

    Attributes without an underscore are what `MLLaMAForCausalLM.prepare_inputs` asks for.
    """

    def __init__(self, config: NvlmMllamaConfig) -> None:
        super().__init__()
        assert config.mapping.pp_size == 1, "cross-attention has no pipeline stages"
        self.mapping = config.mapping
        self.total_num_layers = config.num_hidden_layers
        self.cross_attention_layers = config.cross_attention_layers
        self.hidden_size, self.head_size = config.hidden_size, config.head_size
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.skip_cross_kv = False
        self.vocab_embedding = Embedding(config.vocab_size, config.hidden_size, dtype=config.dtype)
        layers = range(len(config.nvlm_cross_attention["self_rows"]))
        self.layers = ModuleList([DecoderLayer(config, layer) for layer in layers])
        self.ln_f = _norm(config)

    def forward(
        self,
        decoder_input_ids: Tensor,
        encoder_output: Tensor,
        use_cache: bool = False,
        attention_mask_params: Any = None,
        last_token_ids: Tensor | None = None,
        kv_cache_params: Any = None,
        attention_params: Any = None,
        hidden_states: Tensor | None = None,
        lora_params: Any = None,
        cross_kv_cache_gen: Tensor | None = None,
        cross_kv_reuse: Tensor | None = None,
        prompt_embedding_table: Tensor | None = None,
        prompt_tasks: Tensor | None = None,
        prompt_vocab_size: Tensor | None = None,
        skip_cross_attn_blocks: Tensor | None = None,
    ) -> Any:
        """Arguments as `MLLaMAForCausalLM.forward` passes them; NVLM-H has a prompt table of thumbnails."""
        table = [prompt_embedding_table, prompt_tasks, prompt_vocab_size]
        prompt = table if prompt_embedding_table is not None else []
        states = self.vocab_embedding(decoder_input_ids, *prompt)
        mask = attention_mask_params.cross_attention_mask
        nothing = cut(mask, [0, 0], concat([shape(mask, 0), 1]))
        tiles = {
            "encoder_output": encoder_output,
            "mask": mask,
            "packed_mask": attention_mask_params.cross_attention_packed_mask,
            "sees": 1.0 - nothing.cast(states.dtype),
            "cross_kv_cache_gen": cross_kv_cache_gen,
            "cross_kv_reuse": cross_kv_reuse,
            "skip": skip_cross_attn_blocks,
        }
        shared = {
            "use_cache": use_cache,
            "kv_cache_params": kv_cache_params,
            "attention_params": attention_params,
        }
        for layer in self.layers:
            states = layer(states, tiles, shared)
        states = self.ln_f(states)
        # The caches are paged, so that layers hand nothing on.
        return (states, ()) if use_cache else states


class NvlmMllamaForCausalLM(MLLaMAForCausalLM):
    """The model of `--model_cls_name`; inputs and outputs of the engine are MLLaMA's."""

    config_class = NvlmMllamaConfig

    def __init__(self, config: NvlmMllamaConfig) -> None:
        PretrainedModel.__init__(self, config)
        Attention.create_attention_const_params(self, config)
        self.position_embedding_type = config.position_embedding_type
        self.mapping = config.mapping
        self._dtype = self._kv_dtype = config.dtype
        self._logits_dtype = config.logits_dtype
        self.transformer = NvlmDecoder(config)
        self.lm_head = ColumnLinear(
            config.hidden_size,
            pad_vocab_size(config.vocab_size, config.mapping.tp_size),
            bias=False,
            dtype=config.dtype,
            tp_group=config.mapping.tp_group,
            tp_size=config.mapping.tp_size,
            gather_output=True,
        )


def _norm(config: NvlmMllamaConfig) -> RmsNorm:
    return RmsNorm(normalized_shape=config.hidden_size, eps=config.norm_epsilon, dtype=config.dtype)


def _mlp(config: NvlmMllamaConfig) -> GatedMLP:
    return GatedMLP(
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        hidden_act=config.hidden_act,
        dtype=config.dtype,
        bias=config.mlp_bias,
        tp_group=config.mapping.tp_group,
        tp_size=config.mapping.tp_size,
        quant_mode=config.quant_mode,
    )


# `PretrainedConfig.from_json_file` looks architectures up here, after this file was imported.
MODEL_MAP[NvlmMllamaForCausalLM.__name__] = NvlmMllamaForCausalLM
