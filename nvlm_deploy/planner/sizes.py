"""Everything that is summed over a model's tensors, once for a plan; the rest of a plan is arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.target import Target
from nvlm_deploy.planner.shards import Parallel, stage_bytes
from nvlm_deploy.planner.storage import PartBytes, engine_bytes, recipe_bytes, resident_bytes
from nvlm_deploy.quantization.plan import EMBEDDING, QuantizationPlan

_KV_BYTES = {"fp8": 1, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a model under one recipe, for one backend and split.

    recipe, engine, resident: see `planner.storage`, without tables of rotations. stages: what one rank of
    every stage keeps of the language model. step_reads: weights that all ranks together read to decode a
    token: all but the embedding, of which that is one row. kv_format: how keys and values are stored.
    """

    recipe: PartBytes
    engine: PartBytes
    resident: PartBytes
    stages: tuple[int, ...]
    step_reads: int
    kv_format: str

    @property
    def kv_element(self) -> int:
        """Bytes of one number in the cache."""
        return _KV_BYTES[self.kv_format]

    @property
    def tower(self) -> int:
        """Tower and projector, in memory."""
        return self.resident.vision + self.resident.projector


def sum_sizes(config: NvlmConfig, plan: QuantizationPlan, target: Target, parallel: Parallel) -> Sizes:
    """Sum the tensors of `plan` as `target` keeps them on `parallel` ranks."""
    backend = target.backend
    resident = resident_bytes(plan, backend)
    embedding = plan.tensors[EMBEDDING]
    table = 0 if plan.shares_embedding else embedding.storage.nbytes(embedding.shape)
    stages = [resident.language] if parallel.ranks == 1 else stage_bytes(plan, config.language, parallel)
    return Sizes(
        recipe=recipe_bytes(plan, backend),
        engine=engine_bytes(plan, backend),
        resident=resident,
        stages=tuple(stages),
        step_reads=(sum(stages) - table) * parallel.tp,
        kv_format=_kv_format(plan, target),
    )


def _kv_format(plan: QuantizationPlan, target: Target) -> str:
    """FP8 if the recipe says so, else as the backend computes."""
    if plan.kv_cache == "fp8":
        return "fp8"
    return "fp32" if target.backend == "onnxruntime" else "fp16"
