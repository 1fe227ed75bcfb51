"""The weight table of Megatron-core checkpoints of NVLM-D, for any tensor parallelism.

Source of names and layouts: Megatron-LM at the tag NVLM-1.0, Transformer Engine layer spec. Every
tensor-parallel rank holds every name; a tensor is called `mp_rank_03/language_model...` here, with
the layer number counted over all pipeline stages.
"""

from __future__ import annotations

from nvlm_deploy.checkpoint.operations import Concat, Operation, Reshape, Slice, Split, Transpose, Unify
from nvlm_deploy.checkpoint.rules import Rule, RuleTable
from nvlm_deploy.config.model import NUM_DUMMY_HEADS, LanguageConfig, NvlmConfig, VisionConfig
from nvlm_deploy.errors import NvlmError

WORD_EMBEDDINGS = "language_model.embedding.word_embeddings.weight"
OUTPUT_LAYER = "language_model.output_layer.weight"

# Transformer Engine's FP8 bookkeeping, and a buffer that is recomputed.
_DROPPED = ("*._extra_state", "*.rotary_pos_emb.inv_freq")


def rank_prefix(rank: int) -> str:
    """What a tensor's name begins with on one tensor-parallel rank."""
    return f"mp_rank_{rank:02}/"


def megatron_table(config: NvlmConfig, tensor_parallel: int, padded_vocab: int) -> RuleTable:
    """Rules from all ranks' tensors to the released layout.

    Args:
        tensor_parallel: number of ranks that share each layer.
        padded_vocab: rows of the embedding over all ranks; Megatron pads the vocabulary.

    Raises:
        NvlmError: tensor parallelism does not divide the heads or a width of the model.
    """
    ranks = _Ranks(tensor_parallel)
    vision, language = config.vision, config.language
    rules = [
        *_vision_embeddings(ranks, vision),
        *(rule.at(n) for n in range(vision.num_layers) for rule in _vision_layer(ranks, vision)),
        *_projector(ranks, config),
        *_language_ends(ranks, language, padded_vocab),
        *(rule.at(n) for n in range(language.num_layers) for rule in _language_layer(ranks, language)),
    ]
    return RuleTable(rules, drops=dropped_names(config))


def dropped_names(config: NvlmConfig) -> tuple[str, ...]:
    """Patterns of what Megatron saves besides the weights."""
    # With tied embeddings the last pipeline stage holds a copy of the embedding for its own use.
    tied = (f"*/{OUTPUT_LAYER}",) if config.language.tie_word_embeddings else ()
    return _DROPPED + tied


class _Ranks:
    """Writes rules over all tensor-parallel ranks; `within` sets what their names begin with."""

    def __init__(self, count: int, source: str = "", target: str = "") -> None:
        self.count, self.source, self.target = count, source, target

    def within(self, source: str, target: str) -> _Ranks:
        return _Ranks(self.count, source, target)

    def share(self, total: int, what: str) -> int:
        """One rank's part of `total`."""
        if total % self.count:
            raise NvlmError(
                f"tensor parallelism {self.count} does not divide {what} ({total})",
                hint="the checkpoint was made with another config than the one given",
            )
        return total // self.count

    def join(self, source: str, dim: int, total: int) -> Concat:
        """The operation that joins all ranks' parts to a length of `total` along `dim`."""
        return Concat(dim, (self.share(total, f"dimension {dim} of {source}"),) * self.count)

    def same(self, source: str, target: str, *operations: Operation) -> Rule:
        """A tensor that every rank holds in full."""
        return self.rule(source, (target,), Unify(self.count), *operations)

    def joined(self, source: str, target: str, dim: int, total: int) -> Rule:
        """A tensor that is split evenly over the ranks."""
        return self.rule(source, (target,), self.join(source, dim, total))

    def rule(self, source: str, targets: tuple[str, ...], *operations: Operation) -> Rule:
        """All ranks' tensors of one name, in the order of the ranks, through the operations."""
        return Rule(
            tuple(rank_prefix(rank) + self.source + source for rank in range(self.count)),
            tuple(self.target + target for target in targets),
            operations,
        )


def _vision_embeddings(ranks: _Ranks, vision: VisionConfig) -> list[Rule]:
    inside = ranks.within("vision_model.", "vision_model.embeddings.")
    positions = (vision.num_positions, vision.hidden_size)
    return [
        inside.same("class_token", "class_embedding"),
        inside.same("conv1.weight", "patch_embedding.weight"),
        inside.same("conv1.bias", "patch_embedding.bias"),
        inside.same("position_embeddings.weight", "position_embedding", Reshape(positions, (1, *positions))),
    ]


def _vision_layer(ranks: _Ranks, vision: VisionConfig) -> list[Rule]:
    inside = ranks.within("vision_model.decoder.layers.{n}.", "vision_model.encoder.layers.{n}.")
    heads, head_dim = vision.num_heads + NUM_DUMMY_HEADS, vision.head_dim
    ranks.share(heads, "the vision heads, dummy heads included")
    padded, inner, width = vision.padded_hidden_size, vision.intermediate_size, vision.hidden_size
    qkv = "self_attention.linear_qkv.weight"
    return [
        inside.same("input_layernorm.weight", "norm1.weight"),
        # Rows come head by head as [q, k, v]; released are all q, all k, all v.
        inside.rule(
            qkv,
            ("attn.qkv.weight",),
            ranks.join(qkv, 0, 3 * padded),
            Reshape((3 * padded, width), (heads, 3, head_dim, width)),
            Transpose(0, 1),
            Reshape((3, heads, head_dim, width), (3 * padded, width)),
        ),
        inside.joined("self_attention.q_layernorm.weight", "attn.q_norm.weight", 0, padded),
        inside.joined("self_attention.k_layernorm.weight", "attn.k_norm.weight", 0, padded),
        inside.joined("self_attention.linear_proj.weight", "attn.proj.weight", 1, padded),
        inside.same("self_attention.linear_proj.bias", "attn.proj.bias"),
        inside.same("ls1", "ls1"),
        inside.same("pre_mlp_layernorm.weight", "norm2.weight"),
        inside.joined("mlp.linear_fc1.weight", "mlp.fc1.weight", 0, inner),
        inside.joined("mlp.linear_fc1.bias", "mlp.fc1.bias", 0, inner),
        inside.joined("mlp.linear_fc2.weight", "mlp.fc2.weight", 1, inner),
        inside.same("mlp.linear_fc2.bias", "mlp.fc2.bias"),
        inside.same("ls2", "ls2"),
    ]


def _projector(ranks: _Ranks, config: NvlmConfig) -> list[Rule]:
    inside = ranks.within("vision_projection.encoder.", "mlp1.")
    hidden = config.projector_hidden_size
    return [
        inside.same("linear_fc1.layer_norm_weight", "0.weight"),
        inside.same("linear_fc1.layer_norm_bias", "0.bias"),
        inside.joined("linear_fc1.weight", "1.weight", 0, hidden),
        inside.joined("linear_fc2.weight", "3.weight", 1, hidden),
    ]


def _language_ends(ranks: _Ranks, language: LanguageConfig, padded_vocab: int) -> list[Rule]:
    real_rows = Slice(0, 0, language.vocab_size, padded_vocab)
    tables = [(WORD_EMBEDDINGS, "language_model.model.embed_tokens.weight")]
    if not language.tie_word_embeddings:
        tables.append((OUTPUT_LAYER, "language_model.lm_head.weight"))
    return [
        *(
            ranks.rule(source, (target,), ranks.join(source, 0, padded_vocab), real_rows)
            for source, target in tables
        ),
        ranks.same("language_model.decoder.final_layernorm.weight", "language_model.model.norm.weight"),
    ]


def _language_layer(ranks: _Ranks, language: LanguageConfig) -> list[Rule]:
    inside = ranks.within("language_model.decoder.layers.{n}.", "language_model.model.layers.{n}.")
    width, inner = language.hidden_size, language.intermediate_size
    ranks.share(language.num_kv_heads, "the key-value heads")
    gate_up = "mlp.linear_fc1.weight"
    inner_share = ranks.share(inner, "the decoder's intermediate size")
    qkv = [_fused_qkv(inside, language, "weight", (width,))]
    if language.qkv_bias:
        qkv.append(_fused_qkv(inside, language, "bias", ()))
    return [
        inside.same("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        *qkv,
        inside.joined("self_attention.linear_proj.weight", "self_attn.o_proj.weight", 1, language.q_size),
        inside.same("mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight"),
        # Every rank holds [its gate rows, its up rows].
        inside.rule(
            gate_up,
            ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
            ranks.join(gate_up, 0, 2 * inner),
            Reshape((2 * inner, width), (ranks.count, 2, inner_share, width)),
            Transpose(0, 1),
            Reshape((2, ranks.count, inner_share, width), (2 * inner, width)),
            Split(0, (inner, inner)),
        ),
        inside.joined("mlp.linear_fc2.weight", "mlp.down_proj.weight", 1, inner),
    ]


def _fused_qkv(inside: _Ranks, language: LanguageConfig, kind: str, columns: tuple[int, ...]) -> Rule:
    """Rows come by key-value head: its query heads, then its key, then its value."""
    groups, head_dim = language.num_kv_heads, language.head_dim
    queries = language.q_size // groups
    source = f"self_attention.linear_qkv.{kind}"
    rows = language.q_size + 2 * language.kv_size
    return inside.rule(
        source,
        tuple(f"self_attn.{part}_proj.{kind}" for part in "qkv"),
        inside.join(source, 0, rows),
        Reshape((rows, *columns), (groups, rows // groups, *columns)),
        Split(1, (queries, head_dim, head_dim)),
        Reshape((groups, -1, *columns), (-1, *columns)),
    )
