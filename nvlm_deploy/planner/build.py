"""Memory of making an engine and of opening it, and whether the target can do both itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvlm_deploy.config.target import GIB, Target, capability
from nvlm_deploy.planner.memory import RankMemory
from nvlm_deploy.planner.sizes import Sizes

# Python with torch and onnx, and the largest piece of a tensor that is converted at a time.
_WRITER_BYTES = 700_000_000
# TensorRT-RTX builds on the CPU alone. Measured: plans of 614, 320 and 560 MB took 2.9, 1.7 and 2.0 GB.
_RTX_HOST_FACTOR = 5.0
_RTX_SOURCE = "measured with TensorRT-RTX 1.7: 3.6 to 5.3 times the plan on the host, no device"
_WRITER_SOURCE = "the writer streams one piece of one tensor; the rest is Python with its libraries"


@dataclass(frozen=True, slots=True)
class BuildMemory:
    """Peak bytes of a build; the parts of an engine are built one after another, and so are ranks.

    on_target: whether the target can build it itself; None: not known. `reason` says why not.
    host_factor, device_factor: bytes per byte of the largest part's weights.
    """

    host_bytes: int
    device_bytes: int
    host_factor: float
    device_factor: float
    source: str
    on_target: bool | None
    reason: str | None

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class LoadMemory:
    """Peak bytes while an engine is opened, on device and host, and the host's part when files are mapped.

    A unified memory takes both. mapped_only: it fits only when the files are mapped (or streamed).
    """

    device_bytes: int
    host_bytes: int
    mapped_host_bytes: int
    mapped_only: bool

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def build_memory(sizes: Sizes, target: Target, running: RankMemory) -> BuildMemory:
    """Memory of building the largest part of the engine."""
    if target.backend == "onnxruntime":
        return BuildMemory(_WRITER_BYTES, 0, 0.0, 0.0, _WRITER_SOURCE, None if target.gpu else True, None)
    largest = max(*sizes.stages, sizes.tower)
    if target.backend == "tensorrt_rtx":
        host = int(_RTX_HOST_FACTOR * largest)
        return BuildMemory(host, 0, _RTX_HOST_FACTOR, 0.0, _RTX_SOURCE, *_verdict(target, host, 0))
    limits = target.limits
    host = int(limits.build_host_factor * largest)
    scratch = running.workspace + max(running.decoder_activations, running.vision_activations)
    device = int(limits.build_device_factor * largest) + scratch
    source = target.sources.get("limits.build_host_factor", target.sources.get("limits", ""))
    return BuildMemory(
        host,
        device,
        limits.build_host_factor,
        limits.build_device_factor,
        source,
        *_verdict(target, host, device),
    )


def load_memory(sizes: Sizes, target: Target, running: RankMemory) -> LoadMemory:
    """Memory of opening an engine. A part's file is read whole before it is copied, unless it is mapped."""
    host = max(*sizes.stages, sizes.tower)
    if target.backend == "onnxruntime":
        # Weights are mapped, and kernels keep copies in their own order: both at once for the larger part.
        return LoadMemory(0, running.total + host, running.total + host, False)
    unified, usable = target.memory.unified, target.usable_bytes
    without_caches = running.weights + running.workspace + running.process
    too_much = unified and usable is not None and without_caches + host > usable
    return LoadMemory(running.total, host, 0, too_much)


def _verdict(target: Target, host: int, device: int) -> tuple[bool | None, str | None]:
    """Whether the device itself can build, and why not."""
    usable = target.usable_bytes
    if usable is None:
        return None, None
    unified = target.memory.unified
    needed = host + device if unified else device
    if needed <= usable:
        return True, None
    what = "host and device share it" if unified else "on the device"
    return False, (
        f"building on {target.name} itself would take {needed / GIB:.1f} GiB ({what}), and "
        f"{usable / GIB:.1f} GiB are usable: build from stripped or streamed weights, or on a larger machine "
        f"whose GPU has compute capability {capability(target.sm or 0)}, too"
    )
