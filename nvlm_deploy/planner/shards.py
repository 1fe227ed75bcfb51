"""What one rank of a tensor- and pipeline-parallel engine keeps.

Projections are split as TensorRT-LLM splits them: q, k, v, gate, up and `lm_head` by outputs, o and down by
inputs. KV heads divide among the ranks; with more ranks than KV heads each head is kept by several. The inner
width of the MLP is padded with zeros so that whole groups divide. Embedding, norms and biases of row-split
linears are on every rank of their stage. Tower and projector run on rank 0, which sends their result to the
others: copies would cost 12 GB a rank for NVLM-D-72B and save no time, because tiles come as one batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvlm_deploy.config.model import LanguageConfig
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.planner.storage import Shape, gpu_bytes
from nvlm_deploy.quantization.plan import EMBEDDING, LM_HEAD, QuantizationPlan, TensorPlan

_LAYERS = "language.layers."


@dataclass(frozen=True, slots=True)
class Parallel:
    """Tensor-parallel ranks times pipeline stages."""

    tp: int = 1
    pp: int = 1

    @property
    def ranks(self) -> int:
        return self.tp * self.pp

    def check(self, config: LanguageConfig) -> None:
        """Refuse what the decoder cannot be split into.

        Raises:
            UnsuitableError: heads or layers do not divide.
        """
        if config.num_heads % self.tp:
            raise UnsuitableError(
                f"{config.num_heads} attention heads cannot be shared by {self.tp} ranks",
                hint=f"--tp takes a divisor of {config.num_heads}",
            )
        if max(self.tp, config.num_kv_heads) % min(self.tp, config.num_kv_heads):
            raise UnsuitableError(
                f"{config.num_kv_heads} KV heads can neither be divided nor duplicated among {self.tp} ranks",
                hint="--tp takes a power of two",
            )
        if self.pp > config.num_layers:
            raise UnsuitableError(f"{config.num_layers} layers are too few for {self.pp} pipeline stages")

    def kv_heads(self, config: LanguageConfig) -> int:
        """KV heads of one rank."""
        return max(1, config.num_kv_heads // self.tp)

    def layers(self, config: LanguageConfig) -> list[int]:
        """Layers of every stage; the first ones have one more where they do not divide."""
        whole, more = divmod(config.num_layers, self.pp)
        return [whole + (stage < more) for stage in range(self.pp)]


def stage_bytes(plan: QuantizationPlan, config: LanguageConfig, parallel: Parallel) -> list[int]:
    """Bytes of the language model that one rank of every stage keeps."""
    layer_bytes = [0] * config.num_layers
    first = last = 0
    for tensor in plan.tensors.values():
        if tensor.name.startswith(_LAYERS):
            number = int(tensor.name.removeprefix(_LAYERS).partition(".")[0])
            layer_bytes[number] += gpu_bytes(tensor, _piece(tensor, config, parallel.tp), plan)
        elif tensor.name == EMBEDDING:
            first += gpu_bytes(tensor, tensor.shape, plan)
        elif tensor.part in ("language", "lm_head"):
            last += gpu_bytes(tensor, _piece(tensor, config, parallel.tp), plan)
    stages, start = [], 0
    for count in parallel.layers(config):
        stages.append(sum(layer_bytes[start : start + count]))
        start += count
    stages[0] += first
    stages[-1] += last
    return stages


def _piece(tensor: TensorPlan, config: LanguageConfig, tp: int) -> Shape:
    """Shape of what one rank keeps of a tensor."""
    shape, name = tensor.shape, tensor.name
    if tp == 1:
        return shape
    if ".k_proj." in name or ".v_proj." in name:
        return (max(1, config.num_kv_heads // tp) * config.head_dim, *shape[1:])
    if ".q_proj." in name or name == LM_HEAD:
        return (math.ceil(shape[0] / tp), *shape[1:])
    if ".o_proj." in name:
        return (shape[0], shape[1] // tp)
    if ".gate_proj." in name or ".up_proj." in name or ".down_proj." in name:
        width = _padded(config.intermediate_size, tp * max(1, tensor.storage.group_size)) // tp
        return (shape[0], width) if ".down_proj." in name else (width, shape[1])
    return shape


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
