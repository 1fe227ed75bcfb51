"""Opening PyTorch checkpoints from elsewhere without running anything that they ask for.

A `.pt` file is a pickle, and a pickle can name any function to call. Here torch's restricted
unpickler builds tensors and plain containers; the few other names that Megatron's files hold
(arguments, enums, random states) become inert stand-ins. Any other name is refused.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from nvlm_deploy.errors import NvlmError

# None of these is needed for the weights, so none of them is imported or called.
_INERT_GLOBALS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "signal.Signals",
    "megatron.core.enums.ModelType",
    "megatron.core.transformer.enums.AttnBackend",
    "megatron.core.rerun_state_machine.RerunMode",
    "megatron.core.rerun_state_machine.RerunState",
    # The state of Python's and NumPy's random generators.
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    # Transformer Engine keeps its `_extra_state` entries in one.
    "_io.BytesIO",
)


class _Inert:
    """Stands in for an object that is not needed: takes any arguments and state, keeps none."""

    def __new__(cls, *_args: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        pass


def load_pickle(path: Path) -> Any:
    """Load a file written by `torch.save`; tensors stay on disk and are mapped where possible.

    Raises:
        NvlmError: the file is unreadable, or names a class or function that is not on the list. It
            was not imported or called then.
    """
    inert: list[Any] = [(_Inert, name) for name in _INERT_GLOBALS]
    try:
        with torch.serialization.safe_globals(inert):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise NvlmError(f"{path} does not exist", hint="the checkpoint is incomplete") from None
    # A damaged or hostile pickle fails in arbitrary ways inside the unpickler.
    except Exception as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        if name is None:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise NvlmError(f"{path} cannot be read as a PyTorch checkpoint: {reason[0]}") from error
        raise NvlmError(
            f"{path} refers to {name[1]}, which is not on the list of harmless names; nothing was executed",
            hint="if you trust the file, save its 'model' entry alone with torch.save where it was made",
        ) from None
