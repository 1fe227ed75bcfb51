"""Engine makers and the packages around them: what is installed, and what does not go together."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm_deploy.doctor.compatibility import RTX_SMS, TensorRtLlmRow, release, row_of, satisfies
from nvlm_deploy.doctor.facts import Facts
from nvlm_deploy.doctor.line import Line, error, ok, warning
from nvlm_deploy.doctor.system import System

_OWN_ENVIRONMENT = "TensorRT-LLM pins its packages: give it an environment or a container of its own"


def package_lines(facts: Facts, system: System) -> Iterator[Line]:
    """TensorRT, TensorRT-LLM, TensorRT for RTX, ONNX Runtime, torch and ModelOpt."""
    yield from _tensorrt(facts)
    yield from _tensorrt_llm(facts)
    yield from _tensorrt_rtx(facts)
    yield from _onnxruntime(facts, system)
    yield from _torch(facts)
    yield from _modelopt(facts)


def _tensorrt(facts: Facts) -> Iterator[Line]:
    version = facts.tensorrt
    if version is None:
        yield ok("tensorrt", "not installed")
    elif facts.jetson and release(version) >= (11,):
        yield error("tensorrt", version, "TensorRT 11 has no JetPack: use the one that JetPack installs")
    elif facts.jetson and facts.version("tensorrt") and not facts.debian:
        yield warning(
            "tensorrt",
            f"{version} from pip",
            "pip has no TensorRT for Jetson: sudo apt install tensorrt brings JetPack's own",
        )
    else:
        yield ok("tensorrt", version)


def _tensorrt_llm(facts: Facts) -> Iterator[Line]:
    version = facts.version("tensorrt_llm")
    if version is None:
        yield ok("tensorrt_llm", "not installed")
        return
    row = row_of(version)
    if facts.jetson and release(version)[:2] != (0, 12):
        advice = (
            "the branch v0.12.0-jetson is the only one for Orin; the second way is --set backend=tensorrt"
        )
        yield error("tensorrt_llm", version, advice)
    elif row is None:
        yield warning("tensorrt_llm", version, "not known here: 0.12 (Jetson), 0.16 to 1.2 make engines")
    elif row.tensorrt is None:
        yield warning(
            "tensorrt_llm",
            version,
            "makes no engines any more: it serves unified checkpoints (nvlm-build export --format hf); "
            "engines need 1.2.1",
        )
    else:
        yield ok("tensorrt_llm", version)
    if row is not None:
        yield from _beside(facts, version, row)


def _beside(facts: Facts, version: str, row: TensorRtLlmRow) -> Iterator[Line]:
    """What stands beside TensorRT-LLM and is not what it needs."""
    wanted = {
        "tensorrt": row.tensorrt,
        "torch": row.torch,
        "transformers": row.transformers,
        "nvidia-modelopt": row.modelopt,
    }
    for name, requirement in wanted.items():
        mine = facts.tensorrt if name == "tensorrt" else facts.version(name)
        if requirement is not None and mine is not None and not satisfies(mine, requirement):
            found = f"{name} {mine} beside TensorRT-LLM {version}, which needs {name}{requirement}"
            yield error("versions", found, _OWN_ENVIRONMENT)
    if python_tag(facts.python) not in row.pythons:
        found = f"Python {facts.python} with TensorRT-LLM {version}"
        yield error("versions", found, f"its wheels are for Python {' and '.join(row.pythons)}")
    if facts.driver_cuda is not None and release(facts.driver_cuda)[0] < row.cuda:
        found = f"a driver for CUDA {facts.driver_cuda} with TensorRT-LLM {version}"
        yield error("versions", found, f"it is built for CUDA {row.cuda}: update the driver")


def _tensorrt_rtx(facts: Facts) -> Iterator[Line]:
    version = facts.version("tensorrt_rtx")
    if version is None:
        yield ok("tensorrt_rtx", "not installed")
    elif facts.sm is not None and facts.sm not in RTX_SMS:
        yield warning(
            "tensorrt_rtx",
            f"{version}, and a GPU of compute capability {facts.sm / 10:.1f}",
            "it compiles here for other GPUs; its engines do not run on this one",
        )
    else:
        yield ok("tensorrt_rtx", version)


def _onnxruntime(facts: Facts, system: System) -> Iterator[Line]:
    kinds = [name for name in facts.packages if name.startswith("onnxruntime") and "extensions" not in name]
    kinds = [name for name in kinds if "genai" not in name]
    if not kinds:
        yield error("onnxruntime", "not installed", "pip install onnxruntime, or onnxruntime-gpu for a GPU")
        return
    if len(kinds) > 1:
        yield warning(
            "onnxruntime",
            f"{' and '.join(sorted(kinds))} are installed side by side, in one folder",
            "which of them is imported is chance: pip uninstall all of them, then install one",
        )
    providers = system.providers()
    names = " ".join(f"{name} {facts.packages[name]}" for name in sorted(kinds))
    if providers is None:
        yield error("onnxruntime", f"{names} cannot be imported", "pip install --force-reinstall it")
        return
    shown = ", ".join(name.removesuffix("ExecutionProvider") for name in providers)
    if facts.gpus and "CUDAExecutionProvider" not in providers:
        yield warning("onnxruntime", f"{names}: {shown}", "--device cuda needs onnxruntime-gpu in its place")
    else:
        yield ok("onnxruntime", f"{names}: {shown}")
    if "TensorrtExecutionProvider" in providers and not system.has_library("libnvinfer.so.10"):
        yield warning(
            "onnxruntime",
            "its TensorRT provider needs libnvinfer.so.10, which is not found",
            "use CUDA (--device cuda); TensorRT 11 does not help",
        )
    if "CUDAExecutionProvider" in providers and not system.has_library("libcudnn.so.9"):
        yield warning(
            "onnxruntime", "its CUDA provider needs libcudnn.so.9, which is not found", "install cuDNN 9"
        )


def _torch(facts: Facts) -> Iterator[Line]:
    version = facts.version("torch")
    if version is None:
        yield warning("torch", "not installed", "nothing is quantized or verified without it; engines run")
        return
    _, _, build = version.partition("+")
    if release(version) < (2, 8):
        yield warning("torch", version, "this toolkit and ModelOpt need 2.8 or newer")
    elif build.startswith("cu") and facts.driver_cuda is not None:
        major = int(build[2:4]) if build[2:4].isdigit() else 0
        if release(facts.driver_cuda)[0] < major:
            yield error("torch", f"{version}, and a driver for CUDA {facts.driver_cuda}", "update the driver")
        else:
            yield ok("torch", version)
    elif build == "cpu" and facts.gpus:
        yield warning("torch", version, "a build for the CPU: calibration and verify do not use the GPU")
    else:
        yield ok("torch", version)


def _modelopt(facts: Facts) -> Iterator[Line]:
    version = facts.version("nvidia-modelopt")
    if version is None:
        yield ok("modelopt", "not installed (recipes that calibrate use their own searches)")
        return
    if facts.version("requests") is None:
        yield error("modelopt", f"{version} without requests", "it imports it: pip install requests")
    elif release(version) < (0, 47) and facts.version("tensorrt_llm") is None:
        yield warning("modelopt", version, "searches are written for 0.47 and newer")
    else:
        yield ok("modelopt", version)


def python_tag(version: str) -> str:
    """`3.11` of `3.11.7`."""
    return ".".join(version.split(".")[:2])
