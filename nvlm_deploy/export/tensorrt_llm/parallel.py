"""Which rank holds what: tensor parallelism (TP) splits matrices, pipeline parallelism (PP) the layers."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm_deploy.config.model import LanguageConfig
from nvlm_deploy.errors import UsageError


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

    def check(self, language: LanguageConfig) -> None:
        """Raise UsageError unless heads and layers can be divided so."""
        heads, kv_heads, layers = language.num_heads, language.num_kv_heads, language.num_layers
        if self.tp < 1 or self.pp < 1:
            raise UsageError("--tp and --pp are at least 1")
        if heads % self.tp or (kv_heads % self.tp and self.tp % kv_heads):
            fitting = [
                n for n in range(1, heads + 1) if heads % n == 0 and (not kv_heads % n or not n % kv_heads)
            ]
            raise UsageError(
                f"--tp {self.tp} does not divide the {heads} heads and {kv_heads} KV heads of this model",
                hint="it takes --tp " + ", ".join(map(str, fitting)),
            )
        if layers % self.pp:
            fitting = [n for n in range(1, layers + 1) if layers % n == 0]
            raise UsageError(
                f"--pp {self.pp} does not divide the {layers} layers of this model",
                hint="it takes --pp " + ", ".join(map(str, fitting)),
            )
