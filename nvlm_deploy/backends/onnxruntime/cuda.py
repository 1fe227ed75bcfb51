"""What must hold before and after ONNX Runtime's CUDA provider opens a graph. Standard library only.

Not yet run on a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path

from nvlm_deploy.errors import UnsuitableError

PROVIDER = "CUDAExecutionProvider"
# In the metadata of a graph whose cache has another type than the bundle's: the bundle's.
CACHE_TYPE_KEY = "nvlm.cache_dtype"
CACHE_NAMES = ("past_key.", "past_value.", "present_key.", "present_value.")

# Sizes and lengths are computed where they are needed, on the host.
_HOST_OPERATORS = frozenset(
    (
        *("Add", "Cast", "Concat", "Div", "Equal", "Expand", "Gather", "Greater", "Identity", "Mul", "Range"),
        *("ReduceMax", "Reshape", "Shape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
    )
)


def check_placement(nodes: Iterable[tuple[str, str, str]], path: Path) -> None:
    """Refuse a session that computes on the CPU what belongs on the GPU.

    Args:
        nodes: provider, operator and name of every node, as the session placed them.

    Raises:
        UnsuitableError: names the operators and one node.
    """
    fallen = [
        (op, name) for provider, op, name in nodes if provider != PROVIDER and op not in _HOST_OPERATORS
    ]
    if fallen:
        operators = ", ".join(sorted({op for op, _ in fallen}))
        raise UnsuitableError(
            f"{path}: ONNX Runtime placed {len(fallen)} nodes on the CPU ({operators}); the first is "
            f"{fallen[0][1]}",
            hint="this ONNX Runtime has no CUDA kernels for them: install another version of "
            "onnxruntime-gpu, or use --device cpu",
        )


def missing_library(library: Path) -> str:
    """Say why the CUDA provider, whose library is the file `library`, does not work."""
    if not library.exists():
        return f"{library.name} is not installed"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        # Libraries that it needs are looked for before symbols, which ONNX Runtime itself brings.
        if "undefined symbol" not in str(error):
            return str(error)
    return "its libraries load, so the driver or the GPU is not there"
