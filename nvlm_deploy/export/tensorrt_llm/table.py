"""The weight table of a TensorRT-LLM checkpoint: every tensor of the language model, rank by rank.

It leads from the released names, with the suffixes of the unified checkpoint, to names like
`rank0/transformer.layers.0.attention.qkv.weight`. Layers are counted from 0 in every stage. TensorRT-LLM
calls gate_proj `fc` and up_proj `gate`.

Source: `docs/architecture/checkpoint.md`, `models/qwen/model.py` and `layers/` of TensorRT-LLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from nvlm_deploy.checkpoint.operations import (
    Largest,
    Ones,
    Operation,
    Pad,
    Reinterpret,
    Reshape,
    Shard,
    Unify,
)
from nvlm_deploy.checkpoint.rules import Rule, RuleTable
from nvlm_deploy.checkpoint.safetensors_file import RELEASED_DTYPES
from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.config.model import LanguageConfig
from nvlm_deploy.export.tensorrt_llm.matrices import GATES, Fused, biased, matrices_of, singles_of
from nvlm_deploy.export.tensorrt_llm.padding import padded_vocabulary
from nvlm_deploy.export.tensorrt_llm.parallel import Parallel
from nvlm_deploy.export.tensorrt_llm.schemes import PREQUANT, PREQUANT_SUFFIX, Form, StoredTensor
from nvlm_deploy.quantization.checkpoint import kv_scale_names

EMBEDDING = "language_model.model.embed_tokens.weight"
NORM = "language_model.model.norm.weight"
# A tied model has no such tensor: it is the embedding.
LM_HEAD = "language_model.lm_head.weight"
# The vision tower and the projector are an engine of their own; rotary frequencies are made from the config.
_DROPPED = ("vision_model.*", "mlp1.*", "language_model.model.layers.*.self_attn.rotary_emb.inv_freq")
_LAYER = "language_model.model.layers.{n}."
# Which of queries, keys and values a matrix is made of.
_PARTS = {
    "attention.qkv": slice(0, 3),
    "cross.attention.q": slice(0, 1),
    "cross.attention.kv": slice(1, 3),
}
# An FP8 cache covers 448 at least, as ModelOpt writes it: kernels bring queries to the cache's scale, too.
_CACHE_SCALE_FLOOR = 1.0
# Tensors that engines compute with in the model's own precision; scales stay FP32.
_MODEL_SUFFIXES = ("weight", "bias", PREQUANT_SUFFIX)


@dataclass(frozen=True, slots=True)
class Layout:
    """All that the names and shapes of a checkpoint depend on.

    forms: by layer, by the name of a `Fused`. intermediate: inner width of the MLPs with padding.
    split_embedding: whether each rank has a part of the embedding's rows, and not all of them. cross: None
    for NVLM-D.
    """

    language: LanguageConfig
    parallel: Parallel
    forms: tuple[Mapping[str, Form], ...]
    intermediate: int
    split_embedding: bool
    fp8_cache: bool
    cross: CrossAttentionConfig | None = None

    def matrices(self, layer: int) -> tuple[Fused, ...]:
        """All matrices of a decoder layer."""
        return matrices_of(self.cross, layer)

    def has_bias(self, fused: Fused) -> bool:
        """Whether a matrix has a bias."""
        return biased(fused, self.language.qkv_bias, self.cross)

    def sizes(self, fused: Fused) -> tuple[tuple[int, ...], int]:
        """Output features of every source of a matrix, and its input features, without padding."""
        hidden, inner = self.language.hidden_size, self.language.intermediate_size
        if fused.in_mlp:
            return ((hidden,), inner) if fused.parallel == "row" else ((inner,), hidden)
        heads = self._heads(fused)
        if fused.parallel == "row":
            return (hidden,), heads.q_size
        every: tuple[int, ...] = (heads.q_size, heads.kv_size, heads.kv_size)
        return every[_PARTS[fused.name]], hidden

    def _heads(self, fused: Fused) -> LanguageConfig | CrossAttentionConfig:
        """What knows the heads of a matrix of attention."""
        if not fused.name.startswith("cross."):
            return self.language
        assert self.cross is not None, "only layers with cross-attention have its matrices"
        return self.cross

    def local_sizes(self, fused: Fused) -> tuple[int, int]:
        """Output and input features of a matrix on one rank, with padding."""
        outs, inp = self.sizes(fused)
        if fused.parallel == "row":
            return outs[0], self._padded(fused, inp) // self.parallel.tp
        pieces = self._pieces(fused)
        return sum(self._padded(fused, n) // p for n, p in zip(outs, pieces, strict=True)), inp

    def _padded(self, fused: Fused, size: int) -> int:
        return self.intermediate if fused.in_mlp else size

    def _pieces(self, fused: Fused) -> tuple[int, ...]:
        """Different pieces of every source; with more ranks than KV heads, ranks share them."""
        tp = self.parallel.tp
        if fused.in_mlp or fused.parallel == "row":
            return (tp,)
        kv = min(tp, self._heads(fused).num_kv_heads)
        every: tuple[int, ...] = (tp, kv, kv)
        return every[_PARTS[fused.name]]

    def steps(self) -> Iterator[tuple[str, tuple[Rule, ...]]]:
        """Yield name and rules of the pieces that a checkpoint is written in."""
        yield "embedding and head", tuple(self._ends())
        for layer in range(self.language.num_layers):
            yield f"layer {layer}", tuple(self._layer(layer))

    def table(self) -> RuleTable:
        """All rules. The inverse leads from the ranks to the tensors of a unified checkpoint."""
        return RuleTable((rule for _, rules in self.steps() for rule in rules), drops=_DROPPED)

    def _ends(self) -> Iterator[Rule]:
        language, tp = self.language, self.parallel.tp
        rows = language.vocab_size
        padded = padded_vocabulary(rows, tp)
        pad: tuple[Operation, ...] = (Pad(0, 0, rows, padded),) if padded != rows else ()
        split = (*pad, Shard(0, (padded,), (tp,), tp))
        whole = self._replicate(rows)
        last = self.parallel.pp - 1
        embedding = split if self.split_embedding else whole
        yield Rule((EMBEDDING,), self._targets(0, "transformer.vocab_embedding.weight"), embedding)
        yield Rule(
            (NORM,), self._targets(last, "transformer.ln_f.weight"), self._replicate(language.hidden_size)
        )
        yield Rule((LM_HEAD,), self._targets(last, "lm_head.weight"), split)

    def _layer(self, layer: int) -> Iterator[Rule]:
        stage, local = self.parallel.place(layer, self.language.num_layers)
        stem, prefix = _LAYER.replace("{n}", str(layer)), f"transformer.layers.{local}."
        for single in singles_of(self.cross, layer, self.language.hidden_size):
            targets = self._targets(stage, f"{prefix}{single.target}")
            yield Rule((f"{stem}{single.source}",), targets, self._replicate(single.size))
        for fused in self.matrices(layer):
            form = self.forms[layer][fused.name]
            for tensor in form.tensors:
                yield self._rule(fused, tensor, stem, stage, prefix)
            if form.prequant == "source":
                yield self._rule(fused, PREQUANT, stem, stage, prefix)
            elif form.prequant == "ones":
                yield self._ones(fused, stage, prefix)
            if self.has_bias(fused):
                yield self._rule(fused, StoredTensor("bias", "bias", 1), stem, stage, prefix)
        if self.fp8_cache:
            operations = (Largest(2, _CACHE_SCALE_FLOOR), Reshape((), (1,)), *self._replicate(1))
            name = f"{prefix}attention.kv_cache_scaling_factor"
            yield Rule(kv_scale_names(layer), self._targets(stage, name), operations)

    def _rule(self, fused: Fused, tensor: StoredTensor, stem: str, stage: int, prefix: str) -> Rule:
        sources = tuple(f"{stem}{source}.{tensor.source}" for source in fused.sources)
        targets = self._targets(stage, f"{prefix}{fused.name}.{tensor.target}")
        return Rule(sources, targets, tuple(self._operations(fused, tensor)))

    def _operations(self, fused: Fused, tensor: StoredTensor) -> Iterator[Operation]:
        """What leads from the tensors of the sources to the shards of the ranks."""
        if tensor.out is None and len(fused.sources) > 1:
            yield Unify(len(fused.sources), "matrices that TensorRT-LLM fuses")
        if tensor.scalar:
            yield Reshape((), (1,))
            yield from self._replicate(1)
            return
        if tensor.view is not None:
            yield Reinterpret(*tensor.view)
        outs, inp = self.sizes(fused)
        shared, dim = (
            (tensor.out, 0) if fused.parallel == "column" else (tensor.inp, int(tensor.out is not None))
        )
        sizes = outs if fused.parallel == "column" else (inp,)
        if shared is None:
            yield from self._replicate(inp if tensor.out is None else sum(outs))
            return
        lengths = tuple(size // shared for size in sizes)
        padded = tuple(self._padded(fused, size) // shared for size in sizes)
        if padded != lengths:
            yield Pad(dim, 0, lengths[0], padded[0], tensor.fill)
        yield Shard(dim, padded, self._pieces(fused), self.parallel.tp)

    def _ones(self, fused: Fused, stage: int, prefix: str) -> Rule:
        _, inp = self.local_sizes(fused)
        targets = self._targets(stage, f"{prefix}{fused.name}.{PREQUANT_SUFFIX}")
        return Rule((), targets, (Ones(inp), *self._replicate(inp)))

    def _replicate(self, size: int) -> tuple[Operation, ...]:
        """Every rank of the stage gets the whole."""
        return (Shard(0, (size,), (1,), self.parallel.tp),)

    def _targets(self, stage: int, name: str) -> tuple[str, ...]:
        return tuple(on_rank(rank, name) for rank in self.parallel.ranks(stage))


def on_rank(rank: int, name: str) -> str:
    """Name of a tensor among those of all ranks."""
    return f"rank{rank}/{name}"


def rank_and_name(target: str) -> tuple[int, str]:
    """Undo `on_rank`."""
    rank, _, name = target.partition("/")
    return int(rank.removeprefix("rank")), name


def stored_dtype(name: str, dtype: torch.dtype, model_dtype: torch.dtype) -> torch.dtype:
    """Dtype on disk of a rank's tensor that is `dtype` in the source."""
    if name.endswith(GATES):
        return torch.float32
    return model_dtype if dtype in RELEASED_DTYPES and name.endswith(_MODEL_SUFFIXES) else dtype
