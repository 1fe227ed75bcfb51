"""The device that a reference computes on."""

from __future__ import annotations

import torch

from nvlm_deploy.errors import UnsuitableError


def open_device(name: str) -> torch.device:
    """Return the device `name`, which has been tried.

    Raises:
        UnsuitableError: this machine has none of the name.
    """
    try:
        return torch.empty(1, device=name).device
    except (AssertionError, RuntimeError):
        raise UnsuitableError(
            f"there is no device '{name}' on this machine", hint="use --device cpu"
        ) from None
