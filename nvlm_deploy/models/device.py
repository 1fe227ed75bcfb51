"""The device that the reference model computes on."""

from __future__ import annotations

import torch

from nvlm_deploy.errors import UnsuitableError

_KINDS = ("cpu", "cuda")


def open_device(name: str) -> torch.device:
    """Return the device `name` (cpu, cuda or cuda:N), which has been tried.

    Raises:
        UnsuitableError: this machine has none of the name.
    """
    kind, _, number = name.partition(":")
    if kind in _KINDS and not (kind == "cpu" and number):
        try:
            return torch.empty(1, device=name).device
        except (AssertionError, RuntimeError):
            pass
    raise UnsuitableError(f"there is no device '{name}' on this machine", hint="use --device cpu")
