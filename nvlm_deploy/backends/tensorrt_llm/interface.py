"""What the public Python interface of each supported TensorRT-LLM takes, recorded from its sources.

The engine builder is in releases up to 1.2; NVIDIA removed it from 1.3 on (release candidates up to
1.3.0rc20 still had it). JetPack 6 has its own release, 0.12-jetson. Only names that are recorded here are
passed on: newer settings classes ignore names that they do not know, without a word.

Sources: tensorrt_llm/builder.py, plugin/plugin.py and the executor's bindings of 0.12 and of 1.x.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nvlm_deploy.errors import UnsuitableError


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COMMON_BUILD_FIELDS = _names("""
    max_input_len max_seq_len opt_batch_size max_batch_size max_beam_width max_num_tokens opt_num_tokens
    max_prompt_embedding_table_size gather_context_logits gather_generation_logits strongly_typed
    force_num_profiles profiling_verbosity enable_debug_output max_draft_len speculative_decoding_mode
    use_refit input_timing_cache output_timing_cache lora_config weight_sparsity weight_streaming
    plugin_config use_strip_plan max_encoder_input_len dry_run visualize_network
""")
_COMMON_PLUGIN_FIELDS = _names("""
    dtype bert_attention_plugin gpt_attention_plugin gemm_plugin gemm_swiglu_plugin smooth_quant_gemm_plugin
    identity_plugin layernorm_quantization_plugin rmsnorm_quantization_plugin nccl_plugin lora_plugin
    weight_only_groupwise_quant_matmul_plugin weight_only_quant_matmul_plugin quantize_per_token_plugin
    quantize_tensor_plugin moe_plugin mamba_conv1d_plugin context_fmha paged_kv_cache remove_input_padding
    reduce_fusion tokens_per_block use_paged_context_fmha use_fp8_context_fmha multiple_profiles paged_state
    streamingllm
""")


@dataclass(frozen=True, slots=True)
class Interface:
    """One range of releases that share an interface.

    build_fields, plugin_fields: names that `BuildConfig` and `PluginConfig` take. max_tokens_name and
    seed_name: how the executor calls a request's limit and seed. has_extra_ids: a prompt table may say by
    token whose it is, without which keys and values of one image could be reused for another.
    """

    name: str
    build_fields: frozenset[str]
    plugin_fields: frozenset[str]
    max_tokens_name: str
    seed_name: str
    has_extra_ids: bool


V0_12 = Interface(
    name="0.12",
    build_fields=_COMMON_BUILD_FIELDS | _names("builder_opt auto_parallel_config use_fused_mlp"),
    plugin_fields=_COMMON_PLUGIN_FIELDS
    | _names("lookup_plugin context_fmha_fp32_acc use_custom_all_reduce multi_block_mode enable_xqa"),
    max_tokens_name="max_new_tokens",
    seed_name="random_seed",
    has_extra_ids=False,
)
V1 = Interface(
    name="1.x",
    build_fields=_COMMON_BUILD_FIELDS | _names("kv_cache_type monitor_memory use_mrope"),
    plugin_fields=_COMMON_PLUGIN_FIELDS
    | _names("""
        fp8_rowwise_gemm_plugin qserve_gemm_plugin dora_plugin smooth_quant_plugins low_latency_gemm_plugin
        low_latency_gemm_swiglu_plugin gemm_allreduce_plugin bert_context_fmha_fp32_acc norm_quant_fusion
        user_buffer fuse_fp4_quant manage_weights use_fused_mlp pp_reduce_scatter
    """),
    max_tokens_name="max_tokens",
    seed_name="seed",
    has_extra_ids=True,
)

_SUPPORTED = "1.0 to 1.2 (newest 1.2.1), and 0.12-jetson on JetPack 6"


def interface_of(version: str) -> Interface:
    """Return the interface of a release by its version, such as `1.2.1` or `0.12.0`.

    Raises:
        UnsuitableError: this code does not know the release, or NVIDIA removed the engine builder from it.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    release = (int(match[1]), int(match[2])) if match else (0, 0)
    if release == (0, 12):
        return V0_12
    if (1, 0) <= release <= (1, 2):
        return V1
    if release >= (1, 3):
        raise UnsuitableError(
            f"TensorRT-LLM {version} has no engine builder: NVIDIA removed it from 1.3 on",
            hint="build with tensorrt-llm==1.2.1 in an environment of its own, or serve the quantized "
            "checkpoint itself (nvlm-build quantize) with vLLM",
        )
    raise UnsuitableError(
        f"TensorRT-LLM {version} is not supported: engines are built with {_SUPPORTED}",
        hint="install one of these in an environment of its own",
    )
