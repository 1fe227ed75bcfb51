"""Processes: which one this is, what it shares with the others, and how a model is spread over them.

One process needs none of torch.distributed. Under `torchrun` the processes form a mesh of data parallel
(FSDP2) times tensor parallel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from nvlm_deploy.errors import UsageError
from nvlm_deploy.models.nvlm import Nvlm
from nvlm_deploy.train.data.stream import Share


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among all. `mesh` has the axes `dp` and `tp`; None if there is one process."""

    device: torch.device
    rank: int = 0
    world: int = 1
    tensor_parallel: int = 1
    mesh: DeviceMesh | None = None

    @property
    def main(self) -> bool:
        """Whether this one writes what is written once."""
        return self.rank == 0

    @property
    def data_parallel(self) -> int:
        """How many processes, or groups of them, see different data."""
        return self.world // self.tensor_parallel

    @property
    def share(self) -> Share:
        """The data of this process; those of one tensor-parallel group have the same."""
        return Share(self.rank // self.tensor_parallel, self.data_parallel)

    @property
    def counts(self) -> bool:
        """Whether this process's numbers count in sums: one of each tensor-parallel group."""
        return self.rank % self.tensor_parallel == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add values up over all processes; those of one tensor-parallel group count once."""
        if self.world > 1:
            values = values.clone() if self.counts else torch.zeros_like(values)
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any process."""
        value = torch.tensor(float(flag), device=self.device)
        if self.world > 1:
            dist.all_reduce(value)
        return bool(value > 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def open_processes(tensor_parallel: int = 1) -> Iterator[Processes]:
    """Join the processes that `torchrun` has started, or be the only one.

    Raises:
        UsageError: `tensor_parallel` does not divide their number.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world % tensor_parallel:
        raise UsageError(
            f"tensor_parallel_size {tensor_parallel} does not divide {world} process(es)",
            hint="torchrun --nproc-per-node N -m nvlm_deploy.train CONFIG, or --set tensor_parallel_size=1",
        )
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = (
        torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
    )
    if kind == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield Processes(device)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    try:
        mesh = init_device_mesh(
            kind, (world // tensor_parallel, tensor_parallel), mesh_dim_names=("dp", "tp")
        )
        yield Processes(device, rank, world, tensor_parallel, mesh)
    finally:
        dist.destroy_process_group()


def spread(objective: nn.Module, models: Sequence[Nvlm], processes: Processes, bf16: bool) -> None:
    """Turn the parameters of an objective's models into shards, in place; they are on the meta device.

    Every layer is a unit of its own, gathered when it computes; what is left belongs to the whole.
    """
    if processes.mesh is None:
        return
    if processes.tensor_parallel > 1:
        for model in models:
            _split_decoder(model, processes.mesh["tp"])
    if processes.data_parallel == 1:
        return
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    layers = [layer for model in models for layer in (*model.vision.layers, *model.language.layers)]
    for unit in (*layers, objective):
        fully_shard(unit, mesh=processes.mesh["dp"], mp_policy=precision)


def _split_decoder(model: Nvlm, mesh: DeviceMesh) -> None:
    """Heads and MLP features of the decoder over `mesh`; the tower, whose norms join heads, stays whole."""
    config, size = model.config.language, mesh.size()
    heads = [("heads", config.num_heads), ("KV heads", config.num_kv_heads)]
    if model.config.cross_attention is not None:
        heads.append(("KV heads of cross-attention", model.config.cross_attention.num_kv_heads))
    for what, count in (*heads, ("MLP features", config.intermediate_size)):
        if count % size:
            raise UsageError(f"tensor_parallel_size {size} does not divide the decoder's {count:,} {what}")
    split = {"q_proj": ColwiseParallel(), "k_proj": ColwiseParallel(), "v_proj": ColwiseParallel()}
    attention = {**split, "o_proj": RowwiseParallel()}
    mlp = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
    for layer in model.language.layers:
        plan = {f"attention.{name}": style for name, style in attention.items()}
        plan |= {f"mlp.{name}": style for name, style in mlp.items()}
        cross = getattr(layer, "cross", None)
        if cross is not None:
            plan |= {f"cross.attention.{name}": style for name, style in attention.items()}
            if cross.mlp is not None:
                plan |= {f"cross.mlp.{name}": style for name, style in mlp.items()}
        parallelize_module(layer, mesh, plan)


def place(value: Tensor, like: Tensor, device: torch.device) -> Tensor:
    """This process's part of a whole tensor, on its device, as `like` is spread."""
    if not isinstance(like, DTensor):
        return value.to(device)
    return distribute_tensor(value.to(device), like.device_mesh, like.placements, src_data_rank=None)


def whole(value: Tensor) -> Tensor:
    """The whole tensor on the CPU; every process has to ask."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients so that their joint norm is at most `max_norm`; return what it was, float32 ().

    As `torch.nn.utils.clip_grad_norm_`, for parameters that are spread in different ways, too.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    by_mesh: dict[int, list[Tensor]] = {}
    for gradient in gradients:
        mesh = gradient.device_mesh if isinstance(gradient, DTensor) else None
        by_mesh.setdefault(hash(mesh), []).append(gradient)
    norms = [nn.utils.get_total_norm(group) for group in by_mesh.values()]
    totals = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = totals[0] if len(totals) == 1 else torch.stack(totals).norm()
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(scale)
    return total
