"""Predicted speed: bytes over bandwidth and operations over dense rate, each times a stated efficiency.

Decoding reads every weight of the decoder's layers and of `lm_head` once a step, and the keys and values of
the context. Prefill and tower are bound by operations, or by reading all weights once if that takes longer.
Ranks work side by side within a stage; stages of a pipeline one after another for a single request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.target import Target
from nvlm_deploy.planner.memory import kv_per_token
from nvlm_deploy.planner.shards import Parallel, stage_bytes
from nvlm_deploy.planner.storage import resident_bytes
from nvlm_deploy.planner.workload import (
    Workload,
    prefill_operations,
    prompt_tokens,
    tile_counts,
    tower_operations,
)
from nvlm_deploy.quantization.plan import EMBEDDING, QuantizationPlan

_GIGA, _TERA = 1e9, 1e12


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted figures; None where the target does not say what they follow from.

    ttft_ms: milliseconds to the first token by the tiles that the tower sees, thumbnail included.
    decode_tokens_per_s: of one request; decode_batch_tokens_per_s: of all together.
    decode_bytes: read for one step at the end of the largest prompt.
    """

    ttft_ms: dict[int, float]
    decode_tokens_per_s: float | None
    decode_batch_tokens_per_s: float | None
    decode_bytes: int
    missing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        def rounded(value: float | None) -> float | None:
            return None if value is None else round(value, 2)

        return {
            "ttft_ms": {str(tiles): round(ms, 1) for tiles, ms in self.ttft_ms.items()},
            "decode_tokens_per_s": rounded(self.decode_tokens_per_s),
            "decode_batch_tokens_per_s": rounded(self.decode_batch_tokens_per_s),
            "decode_bytes_per_step": self.decode_bytes,
            "unknown": list(self.missing),
        }


NO_PREDICTION = Prediction({}, None, None, 0, ())


def predict(
    config: NvlmConfig, plan: QuantizationPlan, target: Target, parallel: Parallel, load: Workload
) -> Prediction:
    """Predict what `plan` reaches on `target` for requests of at most `load`."""
    resident = resident_bytes(plan, config, target.backend, load.context)
    weights = _decoder_reads(config, plan, target, parallel, resident.language)
    tokens = min(prompt_tokens(config, load.encoded_tiles), load.context)
    read = weights + tokens * load.batch * kv_per_token(config, plan, target, parallel)
    missing = _missing(target)
    step_s = None
    if target.bandwidth_gb_s is not None:
        # Ranks of a stage read side by side, stages one after another.
        bandwidth = target.bandwidth_gb_s * _GIGA * parallel.tp
        step_s = read / bandwidth / target.efficiency.decode
    ttft = {}
    if not missing:
        for tiles in tile_counts(config, load.tiles):
            ttft[tiles] = 1000 * _first_token_s(config, plan, target, parallel, tiles, resident.total)
    return Prediction(
        ttft_ms=ttft,
        decode_tokens_per_s=None if step_s is None else 1 / step_s,
        decode_batch_tokens_per_s=None if step_s is None else load.batch / step_s,
        decode_bytes=read,
        missing=missing,
    )


def _first_token_s(
    config: NvlmConfig,
    plan: QuantizationPlan,
    target: Target,
    parallel: Parallel,
    tiles: int,
    weights: int,
) -> float:
    assert target.bandwidth_gb_s is not None
    tower = sum(
        tiles * operations / _rate(target, precision, target.efficiency.vision)
        for precision, operations in tower_operations(config, plan).items()
    )
    tokens = prompt_tokens(config, tiles)
    prefill = sum(
        operations / _rate(target, precision, target.efficiency.prefill) / parallel.tp
        for precision, operations in prefill_operations(config, plan, tokens).items()
    )
    reading = weights / (target.bandwidth_gb_s * _GIGA * parallel.tp) / target.efficiency.decode
    return max(tower + prefill, reading)


def _rate(target: Target, precision: str, efficiency: float) -> float:
    """Operations a second that are expected in `precision`."""
    rates = {str(name): rate for name, rate in target.tflops.items()}
    if precision == "int8-dynamic":
        # Made on the fly on CPUs; GPU engines keep 16 bits.
        precision = "fp16" if target.gpu else "int8"
    rate = rates.get(precision) or rates.get("fp16") or rates["fp32"]
    return rate * _TERA * efficiency


def _decoder_reads(
    config: NvlmConfig, plan: QuantizationPlan, target: Target, parallel: Parallel, language: int
) -> int:
    """Bytes of weights read for one step, over all ranks: all but the embedding, of which a row is."""
    embedding = plan.tensors[EMBEDDING]
    if parallel.ranks == 1:
        shared = plan.shares_embedding
        return language if shared else language - embedding.storage.nbytes(embedding.shape)
    stages = stage_bytes(plan, config.language, parallel, 0)
    return (sum(stages) - embedding.storage.nbytes(embedding.shape)) * parallel.tp


def _missing(target: Target) -> tuple[str, ...]:
    missing = []
    if target.bandwidth_gb_s is None:
        missing.append("bandwidth_gb_s")
    if not {"fp16", "fp32"} & set(target.tflops):
        missing.append("tflops.fp32")
    return tuple(missing)
