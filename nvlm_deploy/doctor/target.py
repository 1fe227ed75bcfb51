"""This machine against a target: can engines for it be compiled and run here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from nvlm_deploy.doctor.compatibility import RTX_SMS, TENSORRT_LLM, release
from nvlm_deploy.doctor.facts import Facts
from nvlm_deploy.doctor.line import Line, error, ok, warning
from nvlm_deploy.doctor.packages import python_tag
from nvlm_deploy.doctor.system import System

_ELSEWHERE = "checkpoints for it are written here, and its engines are compiled on the device itself"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a target asks for. versions: of its components, by the names in targets; may be empty."""

    name: str
    backend: str
    architecture: str
    sm: int | None
    versions: Mapping[str, str] = field(default_factory=dict)


def target_lines(wanted: Wanted | None, facts: Facts, system: System) -> Iterator[Line]:
    """Nothing without a target."""
    if wanted is None:
        return
    if wanted.architecture != facts.architecture:
        found = f"{wanted.name} is {wanted.architecture}, this machine is {facts.architecture}"
        portable = wanted.backend == "onnxruntime"
        line = warning if portable else error
        yield line("target", found, "engines can be built here and run there" if portable else _ELSEWHERE)
    if wanted.sm is not None and wanted.backend != "tensorrt_rtx":
        yield from _gpu(wanted, facts)
    yield from {
        "onnxruntime": _onnxruntime,
        "tensorrt_llm": _tensorrt_llm,
        "tensorrt": _tensorrt,
        "tensorrt_rtx": _tensorrt_rtx,
    }[wanted.backend](wanted, facts, system)


def _gpu(wanted: Wanted, facts: Facts) -> Iterator[Line]:
    needed = f"{wanted.name} has compute capability {(wanted.sm or 0) / 10:.1f}"
    if not facts.gpus:
        yield error("target", f"{needed}, and there is no GPU here", _ELSEWHERE)
    elif facts.sm != wanted.sm:
        mine = "unknown" if facts.sm is None else f"{facts.sm / 10:.1f}"
        yield error("target", f"{needed}, and this GPU {mine}", _ELSEWHERE)
    else:
        yield ok("target", f"the GPU is that of {wanted.name}")


def _onnxruntime(wanted: Wanted, facts: Facts, system: System) -> Iterator[Line]:
    if wanted.sm is not None and "CUDAExecutionProvider" not in (system.providers() or ()):
        found = f"{wanted.name} through ONNX Runtime, which has no CUDA provider here"
        yield error("target", found, "pip uninstall onnxruntime, then pip install onnxruntime-gpu")
    elif wanted.sm is None:
        yield ok("target", f"ONNX Runtime runs engines for {wanted.name}")


def _tensorrt_llm(wanted: Wanted, facts: Facts, system: System) -> Iterator[Line]:
    version = facts.version("tensorrt_llm")
    need = wanted.versions.get("tensorrt_llm", "0.12" if facts.jetson else "1.2.1")
    if version is None:
        pythons = next((row.pythons for row in TENSORRT_LLM if release(row.release) == release(need)[:2]), ())
        advice = f"install {need} in an environment of its own"
        if pythons and python_tag(facts.python) not in pythons:
            advice += f", with Python {' or '.join(pythons)} (this is {python_tag(facts.python)})"
        yield error("target", "TensorRT-LLM, which compiles for it, is not installed", advice)
    else:
        yield from _same_release("TensorRT-LLM", version, need)
    yield from _tensorrt(wanted, facts, system)


def _tensorrt(wanted: Wanted, facts: Facts, system: System) -> Iterator[Line]:
    if facts.tensorrt is None:
        advice = "sudo apt install tensorrt" if facts.jetson else "pip install tensorrt, or use a container"
        yield error("target", "TensorRT, which compiles the tower, is not installed", advice)
    elif "tensorrt" in wanted.versions:
        yield from _same_release("TensorRT", facts.tensorrt, wanted.versions["tensorrt"])


def _tensorrt_rtx(wanted: Wanted, facts: Facts, system: System) -> Iterator[Line]:
    if wanted.sm not in RTX_SMS:
        found = f"TensorRT for RTX does not compile for compute capability {(wanted.sm or 0) / 10:.1f}"
        yield error("target", found, "use --set backend=tensorrt_llm")
    elif facts.version("tensorrt_rtx") is None:
        yield error(
            "target", "TensorRT for RTX is not installed", "pip install tensorrt-rtx-cu13; it needs no GPU"
        )
    else:
        yield ok("target", f"TensorRT for RTX compiles for {wanted.name} here, with or without its GPU")


def _same_release(name: str, mine: str, need: str) -> Iterator[Line]:
    if release(mine)[:2] != release(need)[:2]:
        yield error(
            "target", f"{name} {mine}, and engines for it are made with {need}", f"install {name} {need}"
        )
    else:
        yield ok("target", f"{name} {mine}")
