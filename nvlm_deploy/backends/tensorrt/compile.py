"""Compile one graph into a plan, in a process of its own: the library ends its process on some errors.

    python -m nvlm_deploy.backends.tensorrt.compile JOB.json

reads a job and prints what it took as JSON. The calls are those of TensorRT 10, 11 and TensorRT-RTX 1.7;
where they differ, the library is asked what it has.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nvlm_deploy
from nvlm_deploy.backends.tensorrt.cuda import device_capability
from nvlm_deploy.backends.tensorrt.profiles import Profile
from nvlm_deploy.errors import NvlmError, UnsuitableError

_MODULES = {
    "tensorrt": "nvlm_deploy.backends.tensorrt.library",
    "tensorrt_rtx": "nvlm_deploy.backends.tensorrt_rtx.library",
}
# TensorRT 10 has weakly typed networks, too; TensorRT 11 has no others than these and may drop the flag.
_STRONGLY_TYPED = "STRONGLY_TYPED"
_OLDEST_TENSORRT = 10
_FORBIDDEN_TYPES = "contains HW-specific datatypes"


@dataclass(frozen=True, slots=True)
class CompileJob:
    """One graph to compile.

    library: `tensorrt` or `tensorrt_rtx`. sm: compute capability, 89 for 8.9; TensorRT builds for the GPU
    that it finds. workspace: bytes of scratch memory; None leaves it to the library.
    """

    library: str
    graph: str
    plan: str
    sm: int
    profiles: tuple[Profile, ...]
    workspace: int | None = None


@dataclass(frozen=True, slots=True)
class CompileResult:
    """seconds: of parse and build. cpu_seconds, peak_bytes: of the process. version: of the library."""

    seconds: float
    cpu_seconds: float
    bytes: int
    peak_bytes: int
    version: str


def load_library(library: str) -> Any:
    """Return the Python module of a library.

    Raises:
        UnsuitableError: it is not installed, or is older than what plans are compiled with.
    """
    trt = importlib.import_module(_MODULES[library]).load()
    if library == "tensorrt" and int(trt.__version__.split(".")[0]) < _OLDEST_TENSORRT:
        raise UnsuitableError(
            f"TensorRT {trt.__version__} is here, and plans need {_OLDEST_TENSORRT}.0, which has INT4",
            hint="JetPack 6.1 and newer have it",
        )
    return trt


def compile_graph(job: CompileJob) -> CompileResult:
    """Run `job` in another process; its plan is there afterwards.

    Raises:
        UnsuitableError: the library is not here, or a type of number does not run on the device.
        NvlmError: the library refuses the graph, or ends its process.
    """
    path = Path(job.plan + ".job.json")
    path.write_text(json.dumps(asdict(job)))
    command = [sys.executable, "-m", __name__, str(path)]
    # The package may be on this process's path and not on that of a new one.
    search = os.pathsep.join([str(Path(nvlm_deploy.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": search.rstrip(os.pathsep)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    finally:
        path.unlink()
    if done.returncode:
        raise _failure(job, done)
    return CompileResult(**json.loads(done.stdout.splitlines()[-1]))


def _failure(job: CompileJob, done: subprocess.CompletedProcess[str]) -> NvlmError:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    said = lines[-1] if lines else "it said nothing"
    for line in lines:
        if _FORBIDDEN_TYPES in line:
            return UnsuitableError(
                f"{Path(job.plan).name} cannot be compiled for SM {job.sm}: {line}",
                hint="choose a recipe whose formats this GPU multiplies: nvlm-build recipes",
            )
    if done.returncode < 0:
        return NvlmError(
            f"{job.library} ended its process with signal {-done.returncode}: {said}",
            hint="if the machine was out of memory, build with more of it or with fewer bits",
        )
    kind = UnsuitableError if done.returncode == UnsuitableError.exit_code else NvlmError
    return kind(f"{job.library} did not compile {Path(job.graph).name}: {said}")


def _run(job: CompileJob) -> CompileResult:
    trt = load_library(job.library)
    _check_device(trt, job)
    start = time.perf_counter()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job.graph):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        said = [f"{error.desc()} (node {error.node_name()}, {error.node_operator()})" for error in errors]
        raise NvlmError("; ".join(said) or "the parser refuses the graph")
    plan = builder.build_serialized_network(network, _config(trt, builder, job))
    if plan is None:
        raise NvlmError("the builder made no plan")
    with Path(job.plan).open("wb") as file:
        file.write(plan)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return CompileResult(
        seconds=round(time.perf_counter() - start, 3),
        cpu_seconds=round(used.ru_utime + used.ru_stime, 3),
        bytes=int(plan.nbytes),
        # Linux counts in KiB.
        peak_bytes=used.ru_maxrss * 1024,
        version=str(trt.__version__),
    )


def _check_device(trt: Any, job: CompileJob) -> None:
    """TensorRT compiles for the GPU that is here, TensorRT-RTX for the one that is named."""
    if job.library == "tensorrt":
        found = device_capability()
        if found != job.sm:
            raise UnsuitableError(
                f"TensorRT compiles for the GPU that is here, whose compute capability is {found}, and the "
                f"target's is {job.sm}"
            )


def _network_flags(trt: Any) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(getattr(flags, _STRONGLY_TYPED)) if hasattr(flags, _STRONGLY_TYPED) else 0


def _config(trt: Any, builder: Any, job: CompileJob) -> Any:
    config = builder.create_builder_config()
    if job.library == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        name = f"SM{job.sm}"
        known = hasattr(trt.ComputeCapability, name)
        if not known or not config.set_compute_capability(getattr(trt.ComputeCapability, name), 0):
            raise UnsuitableError(f"TensorRT-RTX has no compute capability {name}")
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    for shapes in job.profiles:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, tuple(least), tuple(usual), tuple(most))
        config.add_optimization_profile(profile)
    return config


def main(arguments: list[str]) -> int:
    """Run the job in the file that is named; errors go to stderr, in one line that is the last."""
    try:
        result = _run(CompileJob(**json.loads(Path(arguments[0]).read_text())))
        sys.stdout.write(json.dumps(asdict(result)) + "\n")
    except NvlmError as error:
        sys.stderr.write(error.message + "\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
