"""GPU, driver and CUDA."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm_deploy.doctor.compatibility import LEAST_DRIVER, release
from nvlm_deploy.doctor.facts import Facts
from nvlm_deploy.doctor.line import Line, error, ok, warning

_DRIVER_PAGE = "docs.nvidia.com/deploy/cuda-compatibility"


def gpu_lines(facts: Facts) -> Iterator[Line]:
    """The GPUs, the driver, and whether it runs the CUDA that is installed."""
    if not facts.gpus:
        yield ok("gpu", "none: engines for CPUs run here, and checkpoints for GPUs are written here")
        return
    for gpu in facts.gpus:
        size = "memory shared with the CPU" if gpu.memory is None else f"{gpu.memory / 1024:.1f} GiB"
        if gpu.sm is None:
            yield warning("gpu", f"{gpu.name}, {size}", "its kind is not told: update the driver")
        else:
            yield ok("gpu", f"{gpu.name}, compute capability {gpu.sm // 10}.{gpu.sm % 10}, {size}")
    if len({gpu.sm for gpu in facts.gpus}) > 1:
        yield warning(
            "gpu",
            "the GPUs are not of one kind",
            "engines run on the kind that they were compiled for: choose with CUDA_VISIBLE_DEVICES",
        )
    yield from _driver(facts)
    yield from _cuda(facts)


def _driver(facts: Facts) -> Iterator[Line]:
    if facts.driver is not None:
        yield ok("driver", facts.driver)
    elif facts.jetson:
        yield ok("driver", f"part of Jetson Linux {facts.l4t}")
    else:
        yield error(
            "driver", "nvidia-smi does not answer", "install NVIDIA's driver, or mount it in the container"
        )


def _cuda(facts: Facts) -> Iterator[Line]:
    if facts.toolkit is None:
        yield ok("cuda", "no toolkit (Python packages bring their own CUDA)")
        return
    major = release(facts.toolkit)[0]
    if facts.driver is None or facts.jetson:
        yield ok("cuda", f"toolkit {facts.toolkit}")
        return
    least = LEAST_DRIVER.get(major)
    if least is not None and release(facts.driver)[:2] < least:
        yield error(
            "cuda",
            f"toolkit {facts.toolkit} with driver {facts.driver}",
            f"CUDA {major} needs driver {least[0]}.{least[1]} or newer ({_DRIVER_PAGE})",
        )
    else:
        yield ok("cuda", f"toolkit {facts.toolkit}; the driver runs up to {facts.driver_cuda or 'unknown'}")
