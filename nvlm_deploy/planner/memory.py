"""Memory of an open engine, and of making it, by what it is for."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.target import GIB, Target
from nvlm_deploy.planner.shards import Parallel
from nvlm_deploy.planner.sizes import Sizes
from nvlm_deploy.planner.storage import rotary_bytes
from nvlm_deploy.planner.workload import Workload, cross_entries, kv_bytes_per_token, tile_state_bytes

_KV_BLOCK = 64
# CUDA context, libraries and the Python process, where they share the device's memory.
_PROCESS_BYTES = GIB // 2


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes that the fullest rank needs while it answers.

    tile_states: keys and values of the tiles that cross-attention attends to; 0 in NVLM-D.
    """

    weights: int
    kv_cache: int
    tile_states: int
    vision_activations: int
    decoder_activations: int
    prompt_table: int
    workspace: int
    process: int

    @property
    def total(self) -> int:
        return sum(self.to_dict().values())

    def to_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


def kv_per_token(config: NvlmConfig, sizes: Sizes, parallel: Parallel) -> int:
    """Bytes of keys and values of one token, on all ranks; duplicated heads count as often as kept."""
    language = config.language
    heads = parallel.kv_heads(language) * parallel.tp
    return kv_bytes_per_token(language, sizes.kv_element, heads, language.num_layers)


def rank_memory(
    config: NvlmConfig, sizes: Sizes, target: Target, parallel: Parallel, load: Workload
) -> RankMemory:
    """Memory of the rank that needs the most: of every stage rank 0 counts, which has tower and projector."""
    tables = rotary_bytes(config, load.context)
    tower = _tower_activations(config, target, load)
    stages = []
    for stage, layers in enumerate(parallel.layers(config.language)):
        first = stage == 0
        stages.append(
            RankMemory(
                weights=sizes.stages[stage] + tables + (sizes.tower if first else 0),
                kv_cache=_kv_cache(config, sizes, parallel, load, layers),
                tile_states=_tile_states(config, sizes, target, parallel, load),
                vision_activations=tower if first else 0,
                decoder_activations=_decoder_activations(config, target, parallel, load),
                prompt_table=_prompt_table(config, target, load),
                workspace=int(target.limits.workspace_gib * GIB),
                process=_PROCESS_BYTES if target.memory.unified else 0,
            )
        )
    return max(stages, key=lambda rank: rank.total)


def _element(target: Target) -> int:
    return 4 if target.backend == "onnxruntime" else 2


def _kv_cache(config: NvlmConfig, sizes: Sizes, parallel: Parallel, load: Workload, layers: int) -> int:
    blocks = -(-load.context // _KV_BLOCK)
    heads = parallel.kv_heads(config.language)
    per_token = kv_bytes_per_token(config.language, sizes.kv_element, heads, layers)
    return blocks * _KV_BLOCK * load.batch * per_token


def _tile_states(config: NvlmConfig, sizes: Sizes, target: Target, parallel: Parallel, load: Workload) -> int:
    """Of all images of a batch; TensorRT-LLM keeps them in blocks, and divides the heads among ranks."""
    states = tile_state_bytes(config, sizes.kv_element, load.encoded_tiles)
    cross = config.cross_attention
    if target.backend == "tensorrt_llm" and cross is not None:
        entries = cross_entries(config, load.encoded_tiles)
        # With the one that text without tiles attends to.
        blocks = -(-(entries + 1) // _KV_BLOCK)
        heads = -(-cross.num_kv_heads // parallel.tp)
        return load.batch * states * blocks * _KV_BLOCK * heads // (max(1, entries) * cross.num_kv_heads)
    # Those of images are kept for the next question; those of a batch are laid out beside them.
    return load.batch * states * (1 if load.batch == 1 else 2)


def _tower_activations(config: NvlmConfig, target: Target, load: Workload) -> int:
    """Of the widest layer: residual, normed input, q, k, v, one layer's scores, MLP around its GELU."""
    vision = config.vision
    wide = max(5 * vision.hidden_size, 2 * vision.hidden_size + 2 * vision.intermediate_size)
    scores = vision.num_heads * vision.num_positions**2
    return load.encoded_tiles * load.batch * (vision.num_positions * wide + scores) * _element(target)


def _decoder_activations(config: NvlmConfig, target: Target, parallel: Parallel, load: Workload) -> int:
    """Of one pass over as many tokens as the builder allows: residual, normed, q, k, v, MLP; FP32 logits."""
    language = config.language
    tokens = min(target.limits.max_num_tokens, load.context * load.batch)
    qkv = (language.q_size + 2 * language.kv_size) // parallel.tp
    wide = 3 * language.hidden_size + max(qkv, 2 * language.intermediate_size // parallel.tp)
    return tokens * wide * _element(target) + load.batch * language.vocab_size * 4


def _prompt_table(config: NvlmConfig, target: Target, load: Workload) -> int:
    """Visual tokens of all requests, as the decoder takes them."""
    rows = load.batch * load.encoded_tiles * config.visual_tokens_per_tile
    return rows * config.language.hidden_size * _element(target)
