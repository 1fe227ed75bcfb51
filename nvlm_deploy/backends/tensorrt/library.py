"""TensorRT's Python module. The only module that imports tensorrt."""

from __future__ import annotations

from typing import Any

from nvlm_deploy.errors import UnsuitableError


def load() -> Any:
    """Return the module.

    Raises:
        UnsuitableError: it is not installed, or lacks its libraries.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise UnsuitableError(
            f"TensorRT cannot be used here: {error}",
            hint="TensorRT engines are built on their device; JetPack and NVIDIA's containers bring it. "
            "TensorRT-RTX builds anywhere: --set backend=tensorrt_rtx",
        ) from error
    return tensorrt
