"""Requests to TensorRT-LLM's executor as keyword arguments, which differ between releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvlm_deploy.backends.protocol import TokenRequest
from nvlm_deploy.backends.tensorrt_llm.interface import Interface
from nvlm_deploy.backends.tensorrt_llm.prompt_table import check_room, extra_ids, prompt_ids
from nvlm_deploy.errors import UnsuitableError

# What of the free memory the cache may take at most: the executor's own default.
_MOST_OF_FREE = 0.9


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What requests must fit, from the manifest's section `llm`.

    table_rows: of one request's prompt table. kv_tokens: of all requests in flight. reserved_bytes: device
    memory that stays free beside the cache, for the vision engine's activations.
    """

    vocab_size: int
    context: int
    max_batch: int
    table_rows: int
    tokens_per_tile: int
    dtype: str
    kv_tokens: int
    reserved_bytes: int
    chunked_context: bool

    @classmethod
    def of(cls, llm: Mapping[str, Any], tokens_per_tile: int) -> EngineFacts:
        """Read the manifest's section."""
        batch = int(llm["max_batch_size"])
        return cls(
            vocab_size=int(llm["vocab_size"]),
            context=int(llm["context_length"]),
            max_batch=batch,
            table_rows=int(llm["max_prompt_embedding_table_size"]) // batch,
            tokens_per_tile=tokens_per_tile,
            dtype=str(llm["dtype"]),
            kv_tokens=int(llm["kv_cache"]["max_tokens"]),
            reserved_bytes=int(llm["kv_cache"]["reserved_bytes"]),
            chunked_context=bool(llm["paged_context_fmha"]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class AssembledRequest:
    """Keyword arguments of `Request`, `SamplingConfig` and `OutputConfig`, without the prompt table.

    extra_ids: of `PromptTuningConfig`; None where there is no image, or where a release has none.
    """

    request: dict[str, Any]
    sampling: dict[str, Any]
    output: dict[str, Any]
    extra_ids: list[int] | None


def assemble(request: TokenRequest, facts: EngineFacts, interface: Interface) -> AssembledRequest:
    """Put a request together.

    Raises:
        UsageError: it does not fit the engine.
    """
    length, places = len(request.input_ids), request.visual_positions
    check_room(len(places), facts.table_rows, length, facts.context - 1)
    extra = None
    if len(places) and interface.has_extra_ids:
        extra = extra_ids(length, places, request.tiles, facts.tokens_per_tile)
    return AssembledRequest(
        request={
            "input_token_ids": prompt_ids(request.input_ids, places, facts.vocab_size),
            interface.max_tokens_name: min(request.max_new_tokens, facts.context - length),
            "streaming": True,
            "end_id": request.end_id,
            "pad_id": request.end_id,
        },
        sampling=sampling_arguments(request, interface),
        output={"exclude_input_from_output": True, "return_log_probs": request.log_probs},
        extra_ids=extra,
    )


def sampling_arguments(request: TokenRequest, interface: Interface) -> dict[str, Any]:
    """Arguments of `SamplingConfig`. Without both limits the executor would decode greedily."""
    if request.temperature == 0:
        return {"beam_width": 1, "top_k": 1}
    return {
        "beam_width": 1,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "temperature": request.temperature,
        interface.seed_name: request.seed,
    }


def kv_cache_arguments(facts: EngineFacts, interface: Interface, free_bytes: int) -> dict[str, Any]:
    """Arguments of `KvCacheConfig`.

    The executor takes the fraction of what is free once the weights are loaded, and no more than the tokens;
    on a Jetson, whose memory the CPU shares, the fraction alone would take nearly all of it.

    Args:
        free_bytes: free device memory beside the weights of this rank.
    """
    # Without extra ids the same text with another image would get the first image's keys and values.
    reuse = interface.has_extra_ids and facts.chunked_context
    return {
        "enable_block_reuse": reuse,
        "max_tokens": facts.kv_tokens,
        "free_gpu_memory_fraction": kv_fraction(free_bytes, facts.reserved_bytes),
    }


def kv_fraction(free_bytes: int, reserved_bytes: int) -> float:
    """Share of the free memory that the cache may take so that `reserved_bytes` stay free.

    Raises:
        UnsuitableError: nothing is left for the cache.
    """
    if free_bytes <= reserved_bytes:
        raise UnsuitableError(
            f"beside the weights {free_bytes / 1e9:.2f} GB of device memory are free, and the vision engine "
            f"needs {reserved_bytes / 1e9:.2f} GB: nothing is left for keys and values",
            hint="end what else uses the GPU, or compile for fewer tiles or more ranks",
        )
    return round(min(_MOST_OF_FREE, 1 - reserved_bytes / free_bytes), 4)
