"""ONNX Runtime: graphs opened on a device. The only module that imports onnxruntime."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from nvlm_deploy.backends.onnxruntime import cuda
from nvlm_deploy.backends.onnxruntime.cache import Memory
from nvlm_deploy.backends.protocol import GraphFacts, SessionOptions
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError

_ERRORS_ONLY = 3
_CONTEXT_KEY = "nvlm.context_length"
_RECORD_KEY = "nvlm.record"
_RECORD_PLACES = "session.record_ep_graph_assignment_info"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# Products in FP32 are FP32, as on the CPU, and memory is taken as it is needed.
_CUDA_OPTIONS = {
    "use_tf32": "0",
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "HEURISTIC",
}


def open_graph(path: Path, options: SessionOptions, changed: bytes | None = None) -> ort.InferenceSession:
    """Open a graph by its path, so that weights in its data file are mapped and never read as a whole.

    `changed` is opened in its place, with the weights beside `path`.

    Raises:
        NvlmError: the file is missing or damaged.
        UsageError: there is no such kind of device.
        UnsuitableError: the device cannot run the graph, or only in part.
    """
    device, number = parse_device(options.device)
    settings = _settings(options)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        _require_cuda()
        settings.add_session_config_entry(_RECORD_PLACES, "1")
        providers.insert(0, (cuda.PROVIDER, {"device_id": number, **_CUDA_OPTIONS}))
        # It needs onnx, which nothing else does at run time.
        from nvlm_deploy.backends.onnxruntime.cuda_graph import cuda_graph

        changed = cuda_graph(path, changed)
    if changed is not None:
        settings.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent))
    try:
        session = ort.InferenceSession(changed or str(path), settings, providers=providers)
    except Exception as error:
        raise NvlmError(
            f"{path} cannot be loaded: {str(error).splitlines()[0]}",
            hint="the file is missing or damaged; build the bundle again",
        ) from error
    if device == "cuda":
        _refuse_fallback(session, path)
    return session


def parse_device(device: str) -> tuple[str, int]:
    """Return kind and number of `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: it is none of these.
    """
    kind, colon, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdigit())):
        raise UsageError(f"there is no device '{device}'", hint="known: cpu, cuda, cuda:N")
    return kind, int(number or 0)


def available_providers() -> list[str]:
    """What this ONNX Runtime can run graphs with."""
    return list(ort.get_available_providers())


def input_type(session: ort.InferenceSession, name: str) -> type[np.generic]:
    """The NumPy type of a floating-point input of a graph."""
    (dtype,) = [str(value.type) for value in session.get_inputs() if value.name == name]
    return np.float16 if dtype == "tensor(float16)" else np.float32


def _settings(options: SessionOptions) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    settings.intra_op_num_threads = options.threads or _usable_cpus()
    if options.memory == "mapped":
        # Repacked weights, and casts that the optimizer computes ahead, would be copies in memory.
        settings.add_session_config_entry("session.disable_prepacking", "1")
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return settings


def _require_cuda() -> None:
    if cuda.PROVIDER not in ort.get_available_providers():
        raise UnsuitableError(
            f"ONNX Runtime {ort.__version__} here has no {cuda.PROVIDER}: it is a build for the CPU",
            hint="pip uninstall onnxruntime, then pip install onnxruntime-gpu; nvlm-build doctor says more",
        )
    # What it cannot load it prints on stdout, which is for data.
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()


def _refuse_fallback(session: ort.InferenceSession, path: Path) -> None:
    """ONNX Runtime goes on with the CPU where a provider does not load, or has no kernel."""
    if cuda.PROVIDER not in session.get_providers():
        library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
        raise UnsuitableError(
            f"ONNX Runtime cannot use the GPU: {cuda.missing_library(library)}",
            hint="nvlm-build doctor says which CUDA and cuDNN this ONNX Runtime needs, and what is installed",
        )
    cuda.check_placement(placement(session), path)


def placement(session: ort.InferenceSession) -> list[tuple[str, str, str]]:
    """Provider, operator and name of every node of a session that recorded them.

    Raises:
        UnsuitableError: this ONNX Runtime is too old to tell.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise UnsuitableError(
            f"ONNX Runtime {ort.__version__} does not tell which operators it left on the CPU",
            hint="pip install --upgrade onnxruntime-gpu, or use --device cpu",
        )
    return [
        (part.ep_name, node.op_type, node.name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def device_memory(session: ort.InferenceSession, device: str) -> Memory:
    """Where a session's buffers are, on `device`."""
    kind, number = parse_device(device)

    def allocate(array: NDArray[Any]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(array, kind, number)

    return Memory(kind, number, allocate, session.io_binding)


def graph_facts(session: ort.InferenceSession) -> GraphFacts:
    """What an opened graph says of itself."""
    metadata = session.get_modelmeta().custom_metadata_map
    context, record = metadata.get(_CONTEXT_KEY), metadata.get(_RECORD_KEY)
    # A cache in another type, for another device, is the session's affair and not the bundle's.
    cache_type = metadata.get(cuda.CACHE_TYPE_KEY)
    return GraphFacts(
        inputs={value.name: _described(value, cache_type) for value in session.get_inputs()},
        outputs={value.name: _described(value, cache_type) for value in session.get_outputs()},
        context_length=None if context is None else int(context),
        record=None if record is None else json.loads(record),
    )


def _described(value: Any, cache_type: str | None) -> dict[str, Any]:
    name = str(value.type).removeprefix("tensor(").removesuffix(")")
    if cache_type is not None and value.name.startswith(cuda.CACHE_NAMES):
        name = cache_type
    return {"dtype": {"float": "float32", "double": "float64"}.get(name, name), "shape": list(value.shape)}


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
