"""Which rank holds what: tensor parallelism (TP) splits matrices, pipeline parallelism (PP) the layers."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.config.model import LanguageConfig
from nvlm_deploy.errors import UnsuitableError, UsageError


@dataclass(frozen=True, slots=True)
class Parallel:
    """`tp` ranks share every layer; `pp` stages have the layers one after the other."""

    tp: int = 1
    pp: int = 1

    @property
    def world_size(self) -> int:
        """Number of ranks, one GPU each."""
        return self.tp * self.pp

    def ranks(self, stage: int) -> range:
        """Ranks of a stage, in the order of their shards."""
        return range(stage * self.tp, (stage + 1) * self.tp)

    def place(self, layer: int, num_layers: int) -> tuple[int, int]:
        """Stage of a layer, and its number within the stage."""
        return divmod(layer, num_layers // self.pp)

    def check(self, language: LanguageConfig, cross: CrossAttentionConfig | None = None) -> None:
        """Check that heads and layers can be divided so.

        Raises:
            UsageError: they cannot; names what they can be divided into.
            UnsuitableError: there is cross-attention, and more than one stage.
        """
        layers = language.num_layers
        if self.tp < 1 or self.pp < 1:
            raise UsageError("--tp and --pp are at least 1")
        self._check_heads(language, "this model")
        if cross is not None:
            self._check_heads(cross, "this model's cross-attention")
        if cross is not None and self.pp > 1:
            raise UnsuitableError(
                f"--pp {self.pp}: TensorRT-LLM's decoder with cross-attention has no pipeline stages",
                hint="use --tp alone for NVLM-X and NVLM-H",
            )
        if layers % self.pp:
            fitting = [n for n in range(1, layers + 1) if layers % n == 0]
            raise UsageError(
                f"--pp {self.pp} does not divide the {layers} layers of this model",
                hint="it takes --pp " + ", ".join(map(str, fitting)),
            )

    def _check_heads(self, attention: LanguageConfig | CrossAttentionConfig, owner: str) -> None:
        heads, kv_heads = attention.num_heads, attention.num_kv_heads
        if heads % self.tp == 0 and (kv_heads % self.tp == 0 or self.tp % kv_heads == 0):
            return
        fitting = [
            n for n in range(1, heads + 1) if heads % n == 0 and (not kv_heads % n or not n % kv_heads)
        ]
        raise UsageError(
            f"--tp {self.tp} does not divide the {heads} heads and {kv_heads} KV heads of {owner}",
            hint="it takes --tp " + ", ".join(map(str, fitting)),
        )
