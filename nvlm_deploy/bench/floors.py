"""What no engine of a bundle can beat on a machine: operations over rate, or bytes over bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm_deploy.backends.onnxruntime.storage import adapt
from nvlm_deploy.bench.limits import Limits
from nvlm_deploy.config.manifest import EngineManifest
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.parameters import parameter_shapes
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.target import Target
from nvlm_deploy.planner.memory import kv_per_token
from nvlm_deploy.planner.shards import Parallel
from nvlm_deploy.planner.sizes import Sizes, sum_sizes
from nvlm_deploy.planner.workload import (
    DecoderOperations,
    cross_entries,
    decoder_operations,
    tile_state_bytes,
    tower_operations,
)
from nvlm_deploy.quantization.plan import resolve


@dataclass(frozen=True, slots=True)
class Floors:
    """Milliseconds, by the formulas of `nvlm_deploy.planner` with the machine's measured limits."""

    config: NvlmConfig
    limits: Limits
    tower: dict[str, float]
    decoder: DecoderOperations
    sizes: Sizes

    @classmethod
    def of(cls, config: NvlmConfig, manifest: EngineManifest, limits: Limits) -> Floors:
        """Floors of a bundle of ONNX Runtime on a CPU."""
        plan = adapt(resolve(Recipe.model_validate(manifest.recipe), parameter_shapes(config)))
        sizes = sum_sizes(config, plan, Target.model_validate(manifest.target), Parallel())
        return cls(config, limits, tower_operations(config, plan), decoder_operations(config, plan), sizes)

    def vision_ms(self, tiles: int) -> float:
        """Tower and projector for so many tiles."""
        return tiles * self.limits.compute_ms(self.tower)

    def prefill_ms(self, tokens: int, tiles: int = 0) -> float:
        """A prompt of `tokens`, with an image of `tiles`: the slower of computing and reading all weights."""
        operations = self.decoder.prefill(tokens, cross_entries(self.config, tiles))
        return max(self.limits.compute_ms(operations), self.limits.read_ms(self.sizes.step_reads))

    def step_ms(self, depth: int, tiles: int = 0) -> float:
        """One more token behind `depth`: every weight, and all keys and values, read once."""
        states = depth * kv_per_token(self.config, self.sizes, Parallel())
        states += tile_state_bytes(self.config, self.sizes.kv_element, tiles)
        return self.limits.read_ms(self.sizes.step_reads + states)
