"""From a TensorRT-LLM checkpoint and a target's limits to the very arguments of `BuildConfig`.

A request's visual tokens are rows of one prompt table, so the table holds batch x tiles x tokens per tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from nvlm_deploy.backends.tensorrt_llm.interface import Interface
from nvlm_deploy.errors import NvlmError, UnsuitableError, did_you_mean

TOKENS_PER_BLOCK = 64
_FP8 = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN")


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine is built for.

    max_batch: requests in flight. context: tokens of prompt and answer of one request. max_tiles: of one
    request, thumbnails included, that stand in its sequence. max_num_tokens: of one pass over all requests.
    encoder_entries: what cross-attention attends to in one request; 0 in NVLM-D.
    """

    max_batch: int
    context: int
    max_tiles: int
    tokens_per_tile: int
    max_num_tokens: int
    encoder_entries: int = 0

    @property
    def visual_tokens(self) -> int:
        """Rows of the prompt tables of all requests in flight."""
        return self.max_batch * self.max_tiles * self.tokens_per_tile


@dataclass(frozen=True, slots=True)
class LlmBuildSettings:
    """One engine build, in this project's words; `arguments` translates it for a release.

    dtype: of activations and of the prompt table. quant_algo, kv_cache: as in the checkpoint's
    `quantization`. gemm_plugin: for products that are not quantized, and FP8.
    """

    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    max_prompt_embedding_table_size: int
    max_encoder_input_len: int
    dtype: Literal["float16", "bfloat16"]
    quant_algo: str | None
    kv_cache: str | None
    gemm_plugin: str
    tokens_per_block: int
    paged_context_fmha: bool
    fp8_context_fmha: bool
    fused_mlp: bool
    tp: int
    pp: int

    @property
    def world_size(self) -> int:
        """Ranks, each with an engine and a GPU of its own."""
        return self.tp * self.pp


@dataclass(frozen=True, slots=True)
class BuildArguments:
    """Keyword arguments of `BuildConfig`, and of the `PluginConfig` in it."""

    build: dict[str, Any]
    plugin: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        return {"BuildConfig": dict(self.build), "PluginConfig": dict(self.plugin)}


def settle(checkpoint: Mapping[str, Any], limits: EngineLimits, interface: Interface) -> LlmBuildSettings:
    """Settle a build from the `config.json` of a TensorRT-LLM checkpoint.

    Raises:
        UnsuitableError: one request's visual tokens do not fit into its context.
        NvlmError: the config lacks a field.
    """
    try:
        dtype, mapping = checkpoint["dtype"], checkpoint["mapping"]
        tp, pp = int(mapping["tp_size"]), int(mapping["pp_size"])
        quantization = checkpoint.get("quantization") or {}
    except (KeyError, TypeError) as error:
        raise NvlmError(f"the TensorRT-LLM checkpoint's config.json lacks {error}") from None
    if dtype not in ("float16", "bfloat16"):
        raise NvlmError(
            f"the TensorRT-LLM checkpoint's dtype is {dtype!r}", hint="write it in float16 or bfloat16"
        )
    of_one = limits.max_tiles * limits.tokens_per_tile
    if of_one >= limits.context:
        raise UnsuitableError(
            f"one request's {limits.max_tiles} tiles take {of_one:,} tokens, and the context has "
            f"{limits.context:,}",
            hint="raise max_context of the target, or build for fewer tiles",
        )
    # Masks of cross-attention are for whole prompts.
    chunks = interface.has_extra_ids and not limits.encoder_entries
    algorithm, kv_cache = quantization.get("quant_algo"), quantization.get("kv_cache_quant_algo")
    fp8_weights, fp8_cache = algorithm in _FP8, kv_cache == "FP8"
    return LlmBuildSettings(
        max_batch_size=limits.max_batch,
        max_input_len=_longest_prompt(limits),
        max_seq_len=limits.context,
        max_num_tokens=_tokens_per_pass(limits, chunks=chunks),
        max_prompt_embedding_table_size=limits.visual_tokens,
        max_encoder_input_len=limits.encoder_entries,
        dtype=dtype,
        quant_algo=algorithm,
        kv_cache=kv_cache,
        gemm_plugin={"FP8": "fp8", "NVFP4": "nvfp4"}.get(str(algorithm), "auto"),
        tokens_per_block=TOKENS_PER_BLOCK,
        # The builder refuses an FP8 cache with paged context attention unless the weights are FP8, too.
        paged_context_fmha=chunks and (fp8_weights or not fp8_cache),
        # It also fails on FP8 weights without an FP8 cache.
        fp8_context_fmha=fp8_weights and fp8_cache,
        fused_mlp=algorithm is None,
        tp=tp,
        pp=pp,
    )


def arguments(settings: LlmBuildSettings, interface: Interface) -> BuildArguments:
    """Translate settings into the keyword arguments of one release.

    Raises:
        NvlmError: a name is not recorded for the release; see `check_names`.
    """
    build: dict[str, Any] = {
        "max_batch_size": settings.max_batch_size,
        "max_beam_width": 1,
        "max_input_len": settings.max_input_len,
        "max_seq_len": settings.max_seq_len,
        "max_num_tokens": settings.max_num_tokens,
        "max_prompt_embedding_table_size": settings.max_prompt_embedding_table_size,
        "strongly_typed": True,
        # The default is a file in the working directory.
        "output_timing_cache": None,
    }
    plugin: dict[str, Any] = {
        "dtype": settings.dtype,
        "gpt_attention_plugin": settings.dtype,
        "gemm_plugin": settings.dtype if settings.gemm_plugin == "auto" else settings.gemm_plugin,
        "nccl_plugin": settings.dtype if settings.world_size > 1 else None,
        "context_fmha": True,
        "remove_input_padding": True,
        "paged_kv_cache": True,
        "tokens_per_block": settings.tokens_per_block,
        "use_paged_context_fmha": settings.paged_context_fmha,
        "use_fp8_context_fmha": settings.fp8_context_fmha,
    }
    if settings.max_encoder_input_len:
        build["max_encoder_input_len"] = settings.max_encoder_input_len
    if "use_fused_mlp" in interface.build_fields:
        build["use_fused_mlp"] = settings.fused_mlp
    else:
        plugin["use_fused_mlp"] = settings.fused_mlp
    if "monitor_memory" in interface.build_fields:
        build["monitor_memory"] = True
    check_names("BuildConfig", build, interface.build_fields, interface.name)
    check_names("PluginConfig", plugin, interface.plugin_fields, interface.name)
    return BuildArguments(build, plugin)


def check_names(owner: str, given: Mapping[str, Any], known: frozenset[str], release: str) -> None:
    """Refuse arguments that a release does not have: its own classes may drop them silently.

    Raises:
        NvlmError: names the first of them.
    """
    for name in given:
        if name not in known:
            raise NvlmError(
                f"{owner} of TensorRT-LLM {release} has no field '{name}'", hint=did_you_mean(name, known)
            )


def check_engine_config(engine: Mapping[str, Any], settings: LlmBuildSettings) -> None:
    """Hold the `config.json` of a built engine against what was asked for.

    Raises:
        NvlmError: a limit is smaller than asked for, or the engine decodes speculatively, which reads behind
            the end of a prompt table.
    """
    built = engine.get("build_config", {})
    for name in (field.name for field in fields(settings) if field.name.startswith("max_")):
        found, wanted = int(built.get(name) or 0), getattr(settings, name)
        if found < wanted:
            raise NvlmError(
                f"the engine's {name} is {found}, and {wanted} was asked for",
                hint="remove the bundle and compile the kit again",
            )
    # SpeculativeDecodingMode.NONE is the first flag.
    if built.get("speculative_decoding_mode", 1) not in (None, 0, 1, "NONE"):
        raise NvlmError(
            "the engine was built for speculative decoding, which does not go together with prompt tables",
            hint="build it without lookahead, draft or Medusa settings",
        )


def _longest_prompt(limits: EngineLimits) -> int:
    """Tokens of a prompt. With cross-attention, engines reserve memory for a batch of the longest ones."""
    longest = limits.context - 1
    return min(longest, limits.max_num_tokens - 1) if limits.encoder_entries else longest


def _tokens_per_pass(limits: EngineLimits, *, chunks: bool) -> int:
    """Tokens of one pass. Without chunks a prompt must fit into one; 64 keep room for decoding requests."""
    most = limits.max_batch * limits.context
    longest = _longest_prompt(limits) + 1
    wanted = limits.max_num_tokens if chunks else max(limits.max_num_tokens, longest)
    return max(min(wanted, most), min(most, 64))
