"""What `nvlm_mllama.py` takes of TensorRT-LLM 1.x, computed by PyTorch in FP32, for one prompt and one rank.

Signatures are TensorRT-LLM's, as `tensorrt_llm_api.json` records them; a test holds one against the other.
Bodies are this project's: attention is written out, nothing is quantized or cached, and what other ranks
would add is missing. Whatever the model class uses beyond this is an error.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from .torch_ops import (
    AttentionMaskType,
    Conditional,
    Module,
    ModuleList,
    Parameter,
    PositionEmbeddingType,
    Tensor,
    concat,
    shape,
    slice,
    tanh,
)

MODEL_MAP: dict[str, Any] = {}


class _Linear(Module):
    def _make(self, rows: int, columns: int, bias: bool, dtype: Any) -> None:
        self.weight = Parameter(shape=(rows, columns), dtype=dtype)
        self.bias = Parameter(shape=(rows,), dtype=dtype) if bias else None

    def forward(self, x: Tensor, lora_runtime_params: Any = None) -> Tensor:
        bias = None if self.bias is None else self.bias.value.data
        return Tensor(F.linear(x.data, self.weight.value.data, bias))


class ColumnLinear(_Linear):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: Any = None,
        tp_group: Any = None,
        tp_size: int = 1,
        gather_output: bool = True,
        share_weight: Any = None,
        strict_dtype: bool = False,
        pad_lda: int = 0,
        pad_ldc: int = 0,
        prefer_managed_weight: bool = True,
        is_qkv: bool = False,
    ) -> None:
        assert out_features % tp_size == 0
        self._make(out_features // tp_size, in_features, bias, dtype)


class RowLinear(_Linear):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: Any = None,
        tp_group: Any = None,
        tp_size: int = 1,
        strict_dtype: bool = False,
        pad_lda: int = 0,
        prefer_managed_weight: bool = True,
        is_expert: bool = False,
    ) -> None:
        assert in_features % tp_size == 0
        self._make(out_features, in_features // tp_size, bias, dtype)


class Embedding(Module):
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: Any = None,
        tp_size: int = 1,
        tp_group: Any = None,
        sharding_dim: int = 0,
        tp_rank: int | None = None,
    ) -> None:
        self.num_embeddings = num_embeddings
        self.weight = Parameter(shape=(num_embeddings, embedding_dim), dtype=dtype)

    def forward(self, tokens: Tensor, *prompt: Tensor) -> Tensor:
        """Ids behind the vocabulary are rows of a prompt table, as in `PromptTuningEmbedding`."""
        rows = self.weight.value.data[: self.num_embeddings]
        table = torch.cat([rows, prompt[0].data]) if prompt else rows
        return Tensor(table[tokens.data])

    def divide(self, tp_size: int) -> None:
        """What `parallelize_embedding` does after the model is made."""
        rows = math.ceil(self.num_embeddings / tp_size)
        self.weight.shape = (rows, self.weight.shape[1])


class RmsNorm(Module):
    def __init__(
        self,
        normalized_shape: int,
        num_groups: int = 1,
        eps: float = 1e-06,
        elementwise_affine: bool = True,
        dtype: Any = None,
    ) -> None:
        self.eps = eps
        self.weight = Parameter(shape=(normalized_shape,), dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return Tensor(F.rms_norm(x.data, self.weight.shape, self.weight.value.data, self.eps))


class GatedMLP(Module):
    def __init__(
        self,
        hidden_size: int,
        ffn_hidden_size: int,
        hidden_act: str,
        bias: bool = True,
        dtype: Any = None,
        tp_group: Any = None,
        tp_size: int = 1,
        quant_mode: Any = None,
        inner_layernorm: bool = False,
        eps: float = 1e-05,
    ) -> None:
        assert hidden_act == "silu"
        parallel = {"bias": bias, "dtype": dtype, "tp_size": tp_size}
        self.fc = ColumnLinear(hidden_size, ffn_hidden_size, **parallel)
        self.gate = ColumnLinear(hidden_size, ffn_hidden_size, **parallel)
        self.proj = RowLinear(ffn_hidden_size, hidden_size, **parallel)

    def forward(self, hidden_states: Tensor) -> Tensor:
        inner = Tensor(F.silu(self.fc(hidden_states).data)) * self.gate(hidden_states)
        return self.proj(inner)


class Attention(Module):
    def __init__(
        self,
        *,
        local_layer_idx: int,
        hidden_size: int,
        num_attention_heads: int,
        num_kv_heads: int,
        max_position_embeddings: int = 1024,
        attention_head_size: int,
        attention_mask_type: AttentionMaskType,
        bias: bool = True,
        dtype: Any = None,
        position_embedding_type: PositionEmbeddingType = PositionEmbeddingType.learned_absolute,
        rotary_embedding_base: float = 10000.0,
        rotary_embedding_scaling: Any = None,
        tp_group: Any = None,
        tp_size: int = 1,
        tp_rank: int = 0,
        quant_mode: Any = None,
        cross_attention: bool = False,
        dense_bias: bool | None = None,
        enable_qkv: bool = True,
    ) -> None:
        assert num_attention_heads % tp_size == 0
        assert rotary_embedding_scaling is None
        self.local_layer_idx, self.cross_attention = local_layer_idx, cross_attention
        self.num_attention_heads = num_attention_heads // tp_size
        self.num_attention_kv_heads = (num_kv_heads + tp_size - 1) // tp_size
        self.attention_head_size, self.rotary_embedding_base = attention_head_size, rotary_embedding_base
        self.position_embedding_type = position_embedding_type
        heads = tp_size * (self.num_attention_heads + 2 * self.num_attention_kv_heads)
        if enable_qkv:
            self.qkv = ColumnLinear(
                hidden_size, heads * attention_head_size, bias=bias, dtype=dtype, tp_size=tp_size
            )
        width = tp_size * self.num_attention_heads * attention_head_size
        self.dense = RowLinear(width, hidden_size, bias=bool(dense_bias), dtype=dtype, tp_size=tp_size)

    @staticmethod
    def create_attention_const_params(model_cls: Any, config: Any) -> None:
        assert config.position_embedding_type is PositionEmbeddingType.rope_gpt_neox

    @staticmethod
    def fill_attention_params(model_cls: Any, attention_params: Any) -> Any:
        assert model_cls.position_embedding_type is PositionEmbeddingType.rope_gpt_neox
        return attention_params

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        attention_packed_mask: Tensor | None = None,
        use_cache: bool = False,
        kv_cache_params: Any = None,
        attention_params: Any = None,
        encoder_output: Tensor | None = None,
        cross_kv_cache_gen: Tensor | None = None,
        cross_kv_reuse: Tensor | None = None,
        skip_attn: Tensor | None = None,
    ) -> Any:
        sections = [self.num_attention_heads, self.num_attention_kv_heads, self.num_attention_kv_heads]
        qkv = self.qkv(hidden_states, None).data.unflatten(1, (sum(sections), -1)).transpose(0, 1)
        q, k, v = qkv.split(sections)
        if not self.cross_attention:
            assert attention_mask is None
            q, k = (self._rotated(x) for x in (q, k))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            assert attention_mask is not None
            assert encoder_output is not None
            # Kernels compute no softmax over nothing.
            assert attention_mask.data.any(dim=1).all()
            tiles: Any = self.kv(encoder_output, None)  # type: ignore[attr-defined]
            k, v = tiles.data.unflatten(1, (sum(sections[1:]), -1)).transpose(0, 1).split(sections[1:])
            mask = attention_mask.data
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        output = self.dense(Tensor(mixed.transpose(0, 1).flatten(1)))
        if skip_attn is not None and bool(skip_attn.data):
            # Nothing is written there.
            output = Tensor(torch.full_like(output.data, torch.nan))
        return (output, None) if use_cache else output

    def _rotated(self, x_HTK: torch.Tensor) -> torch.Tensor:
        length, size = x_HTK.shape[1:]
        exponents = torch.arange(0, size, 2) / size
        angles = torch.outer(torch.arange(length).float(), self.rotary_embedding_base**-exponents)
        first, second = x_HTK.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class MLLaMAConfig:
    """Has the properties that TensorRT-LLM's has, and takes their values from a file as it does."""

    def __init__(
        self, *, cross_attention_layers: list[int], vision_output_dim: int = 0, **kwargs: Any
    ) -> None:
        assert vision_output_dim
        self.cross_attention_layers, self.skip_cross_attn_blocks = cross_attention_layers, True
        for name in ("embed_vocab_size", "num_kv_heads_per_layer", "num_kv_heads_per_cross_attn_layer"):
            kwargs.pop(name)
        mapping = kwargs.pop("mapping")
        tp_size = mapping["tp_size"]
        self.mapping = SimpleNamespace(
            tp_size=tp_size, tp_rank=0, pp_size=mapping["pp_size"], tp_group=list(range(tp_size))
        )
        kind = kwargs.pop("position_embedding_type")
        self.position_embedding_type, self.quant_mode = PositionEmbeddingType[kind], None
        vars(self).update(kwargs)

    @property
    def num_kv_heads_per_layer(self) -> list[int]:
        fields = vars(self)
        rows = range(fields["num_hidden_layers"])
        return [0 if row in self.cross_attention_layers else fields["num_key_value_heads"] for row in rows]


class PretrainedModel(Module):
    def __init__(self, config: Any) -> None:
        self.config = config

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        parameters = dict(self.named_parameters())
        assert sorted(parameters) == sorted(weights)
        for name, tensor in weights.items():
            parameters[name].value = tensor


class MLLaMAForCausalLM(PretrainedModel):
    def forward(
        self,
        decoder_input_ids: Tensor,
        encoder_output: Tensor,
        use_cache: bool = False,
        attention_mask_params: Any = None,
        last_token_ids: Any = None,
        kv_cache_params: Any = None,
        attention_params: Any = None,
        hidden_states: Any = None,
        lora_params: Any = None,
        cross_kv_cache_gen: Any = None,
        cross_kv_reuse: Any = None,
        prompt_embedding_table: Any = None,
        prompt_tasks: Any = None,
        prompt_vocab_size: Any = None,
        skip_cross_attn_blocks: Any = None,
    ) -> Tensor:
        """Logits of all tokens, where TensorRT-LLM gathers those of the last."""
        model: Any = self
        states = model.transformer(
            decoder_input_ids=decoder_input_ids,
            encoder_output=encoder_output,
            use_cache=use_cache,
            attention_mask_params=attention_mask_params,
            last_token_ids=last_token_ids,
            kv_cache_params=kv_cache_params,
            attention_params=Attention.fill_attention_params(self, attention_params),
            hidden_states=hidden_states,
            lora_params=lora_params,
            cross_kv_cache_gen=cross_kv_cache_gen,
            cross_kv_reuse=cross_kv_reuse,
            prompt_embedding_table=prompt_embedding_table,
            prompt_tasks=prompt_tasks,
            prompt_vocab_size=prompt_vocab_size,
            skip_cross_attn_blocks=skip_cross_attn_blocks,
        )
        logits: Tensor = model.lm_head(states[0] if use_cache else states)
        return logits


def pad_vocab_size(vocab_size: int, tp_size: int) -> int:
    return math.ceil(vocab_size / tp_size) * tp_size


MODULES: dict[str, tuple[Any, ...]] = {
    "_utils": (pad_vocab_size,),
    "functional": (Conditional, PositionEmbeddingType, Tensor, concat, shape, slice, tanh),
    "layers": (Attention, AttentionMaskType, ColumnLinear, Embedding, GatedMLP, RmsNorm),
    "models": (),
    "models.mllama": (),
    "models.mllama.config": (MLLaMAConfig,),
    "models.mllama.model": (MLLaMAForCausalLM,),
    "models.modeling_utils": (PretrainedModel,),
    "module": (Module, ModuleList),
    "parameter": (Parameter,),
}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import tensorrt_llm` find these."""
    monkeypatch.setitem(sys.modules, "tensorrt_llm", ModuleType("tensorrt_llm"))
    for name, members in MODULES.items():
        module = ModuleType(f"tensorrt_llm.{name}")
        vars(module).update({member.__name__: member for member in members})
        monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(sys.modules["tensorrt_llm.models"])["MODEL_MAP"] = MODEL_MAP


def from_checkpoint(directory: Path, config: dict[str, Any], rank: int) -> Any:
    """What `trtllm-build` does with a checkpoint, up to the model with its weights."""
    model_class = MODEL_MAP[config["architecture"]]
    settings = model_class.config_class(**config)
    settings.mapping.tp_rank = rank
    model = model_class(settings)
    if settings.use_parallel_embedding:
        model.transformer.vocab_embedding.divide(settings.mapping.tp_size)
    model.load(load_file(directory / f"rank{rank}.safetensors"))
    return model
