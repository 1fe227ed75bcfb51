"""TensorRT-RTX's Python module. The only module that imports tensorrt_rtx."""

from __future__ import annotations

from typing import Any

from nvlm_deploy.errors import UnsuitableError


def load() -> Any:
    """Return the module.

    Raises:
        UnsuitableError: it is not installed, or lacks its libraries.
    """
    try:
        import tensorrt_rtx
    except (ImportError, OSError) as error:
        raise UnsuitableError(
            f"TensorRT-RTX cannot be used here: {error}",
            hint="pip install 'nvlm-deploy[tensorrt-rtx]'; it needs no GPU to build",
        ) from error
    return tensorrt_rtx
