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
from nvlm_deploy.planner.shards import Parallel
from nvlm_deploy.planner.sizes import Sizes
from nvlm_deploy.planner.workload import (
    DecoderOperations,
    Workload,
    decoder_operations,
    prompt_tokens,
    tile_counts,
    tower_operations,
)
from nvlm_deploy.quantization.plan import QuantizationPlan

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
    config: NvlmConfig,
    plan: QuantizationPlan,
    sizes: Sizes,
    target: Target,
    parallel: Parallel,
    load: Workload,
) -> Prediction:
    """Predict what `plan` reaches on `target` for requests of at most `load`."""
    tokens = min(prompt_tokens(config, load.encoded_tiles), load.context)
    read = sizes.step_reads + tokens * load.batch * kv_per_token(config, sizes, parallel)
    missing = _missing(target)
    step_s = None
    if target.bandwidth_gb_s is not None:
        # Ranks of a stage read side by side, stages one after another.
        bandwidth = target.bandwidth_gb_s * _GIGA * parallel.tp
        step_s = read / bandwidth / target.efficiency.decode
    ttft = {}
    if not missing:
        reading = _reading_s(sizes, target, parallel)
        tower_s = _tower_s(config, plan, target)
        decoder = decoder_operations(config.language, plan)
        for tiles in tile_counts(config, load.tiles):
            prefill_s = _prefill_s(decoder, target, parallel, prompt_tokens(config, tiles))
            ttft[tiles] = 1000 * max(tiles * tower_s + prefill_s, reading)
    return Prediction(
        ttft_ms=ttft,
        decode_tokens_per_s=None if step_s is None else 1 / step_s,
        decode_batch_tokens_per_s=None if step_s is None else load.batch / step_s,
        decode_bytes=read,
        missing=missing,
    )


def _tower_s(config: NvlmConfig, plan: QuantizationPlan, target: Target) -> float:
    """Seconds of tower and projector for one tile; one rank does it."""
    return sum(
        operations / _rate(target, precision, target.efficiency.vision)
        for precision, operations in tower_operations(config, plan).items()
    )


def _prefill_s(decoder: DecoderOperations, target: Target, parallel: Parallel, tokens: int) -> float:
    return sum(
        operations / _rate(target, precision, target.efficiency.prefill) / parallel.tp
        for precision, operations in decoder.prefill(tokens).items()
    )


def _reading_s(sizes: Sizes, target: Target, parallel: Parallel) -> float:
    """Seconds to read every weight once."""
    assert target.bandwidth_gb_s is not None, "nothing is predicted without"
    bandwidth = target.bandwidth_gb_s * _GIGA * target.efficiency.decode
    return sizes.tower / bandwidth + sizes.step_reads / parallel.tp / bandwidth


def _rate(target: Target, precision: str, efficiency: float) -> float:
    """Operations a second that are expected in `precision`."""
    rates = {str(name): rate for name, rate in target.tflops.items()}
    if precision == "int8-dynamic":
        # Made on the fly on CPUs; GPU engines keep 16 bits.
        precision = "fp16" if target.gpu else "int8"
    rate = rates.get(precision) or rates.get("fp16") or rates["fp32"]
    return rate * _TERA * efficiency


def _missing(target: Target) -> tuple[str, ...]:
    missing = []
    if target.bandwidth_gb_s is None:
        missing.append("bandwidth_gb_s")
    if not {"fp16", "fp32"} & set(target.tflops):
        missing.append("tflops.fp32")
    return tuple(missing)
