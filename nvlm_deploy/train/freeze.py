"""Which parameters are trained."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from nvlm_deploy.errors import UsageError, did_you_mean


def apply_freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Close the modules and parameters that `names` match, one name after the other; `!` opens them again.

    Raises:
        UsageError: a name matches nothing, or nothing is left to train.
    """
    model.requires_grad_(True)
    known = [name for name, _ in model.named_modules() if name] + [
        name for name, _ in model.named_parameters()
    ]
    for entry in names:
        glob = entry.removeprefix("!")
        matched = set(fnmatch.filter(known, glob))
        if not matched:
            parts = sorted({part for name in known for part in (name, name.partition(".")[0])})
            raise UsageError(f"freeze: '{entry}' matches no module", hint=did_you_mean(glob, parts))
        for name, parameter in model.named_parameters():
            pieces = name.split(".")
            if any(".".join(pieces[:depth]) in matched for depth in range(1, len(pieces) + 1)):
                parameter.requires_grad_(entry.startswith("!"))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"freeze {list(names)} leaves nothing to train", hint="open a module: '!projector'")
